"""Which run an argument names, and the message where it names none or several."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reprogpt.errors import PipelineError
from reprogpt.paths import TRAIN_SUMMARY
from reprogpt.runs.find import find_run_of_name, require_run
from reprogpt.tags import PARENT_RUN_ID
from reprogpt.tracking.store.tracked_run import TrackedRun
from tests.git import git


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No repository, so no DVC experiments."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_run(start: str, name: str, **tags: str) -> TrackedRun:
    return TrackedRun(id=start.ljust(32, "0"), name=name, status="FINISHED", tags=tags)


NEW, OLD, SLOW, CLASH = (
    a_run("aaaaaa1", "repro-1"),
    a_run("bbbbbb", "repro-1"),
    a_run("cccccc", "renamed", **{"dvc.experiment": "slow"}),
    a_run("aaaaaa2", "bbbbbb"),
)
RUNS = [NEW, OLD, SLOW, CLASH]  # newest first


@pytest.mark.parametrize(
    ("what", "run"),
    [(SLOW.id, SLOW), ("cccccc", SLOW), ("CCCCCC00", SLOW), ("aaaaaa2", CLASH), ("renamed", SLOW), ("slow", SLOW)],
)
def test_an_id_its_start_a_name_or_an_experiment_names_the_run(what: str, run: TrackedRun) -> None:
    assert require_run(what, RUNS) == (run, "")


def test_an_id_goes_before_a_name() -> None:
    assert require_run("bbbbbb", RUNS) == (OLD, "")


def test_of_several_runs_with_one_name_the_newest_is_taken_with_a_remark() -> None:
    run, remark = require_run("repro-1", RUNS)
    assert run is NEW
    assert remark.startswith("2 runs are named repro-1; this is the newest:")
    assert "aaaaaa10" in remark and "bbbbbb00" in remark


def test_digits_that_several_ids_start_with_are_refused_with_their_names() -> None:
    with pytest.raises(PipelineError, match=r"aaaaaa begins the ids of 2 runs; give more digits:\n.*repro-1\n.*bbbbbb"):
        require_run("aaaaaa", RUNS)


@pytest.mark.parametrize("what", ["ccccc", "repro", "unknown", "", "ffffff", "0" * 40])
def test_too_few_digits_and_unknown_words_name_none_and_what_is_known_is_listed(what: str) -> None:
    assert find_run_of_name(what, RUNS) is None
    with pytest.raises(PipelineError, match=f"no MLflow run has the id or name {what}, (.|\n)*cccccc00  renamed"):
        require_run(what, RUNS)


def test_at_most_ten_are_listed() -> None:
    with pytest.raises(PipelineError) as caught:
        require_run("unknown", [a_run(f"{number:06d}", f"run-{number}") for number in range(13)])
    assert "run-9" in str(caught.value) and "run-10" not in str(caught.value)
    assert "… and 3 older" in str(caught.value)


def test_of_an_empty_store_the_message_names_what_makes_a_run() -> None:
    with pytest.raises(PipelineError, match="Known: none; `dvc repro` makes one"):
        require_run("unknown", [])


def result(name: str, run_key: str, weights: str = "w.dir") -> None:
    """A DVC experiment that has the result of a training."""
    TRAIN_SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    TRAIN_SUMMARY.write_text(json.dumps({"run_key": [run_key]}), "utf-8")
    Path("dvc.lock").write_text(f"stages: {{train: {{cmd: fit, outs: [{{path: data/model, md5: {weights}}}]}}}}")
    git("add", "--all")
    git("commit", "-qm", name)
    git("update-ref", f"refs/exps/ab/{'c' * 38}/{name}", "HEAD")


def trained(start: str, name: str, run_key: str, weights: str = "w.dir") -> TrackedRun:
    return a_run(start, name, **{"dvc.experiment": name, "run_key": run_key, "dvc.data/model.md5": weights})


def test_a_renamed_experiment_is_found_by_its_new_name_and_by_its_old_one(folder: Path) -> None:
    """DVC itself renames it."""
    git("init", "-q")
    dvc = [sys.executable, "-m", "dvc"]
    env = os.environ | {"DVC_NO_ANALYTICS": "1"}
    subprocess.run([*dvc, "init", "-q"], env=env, check=True)
    result("old", "k")
    subprocess.run([*dvc, "exp", "rename", "old", "new"], env=env, check=True, capture_output=True)
    run = trained("dddddd", "old", "k")
    assert require_run("old", [NEW, run]) == (run, "")
    assert require_run("new", [NEW, run]) == (run, f"the DVC experiment new has the result of run {run.id}, old")
    assert find_run_of_name("new", [NEW, run]) is None
    with pytest.raises(PipelineError, match="no MLflow run has the id or name new"):
        require_run("new", [NEW])


def test_a_name_that_another_experiment_has_now_is_that_experiments(folder: Path) -> None:
    """Its run of that name is of a training whose experiment was removed."""
    git("init", "-q")
    result("slow", "new")
    runs = [trained("eeeeee", "slow", "former"), trained("dddddd", "quick", "new")]
    assert require_run("slow", runs)[0].name == "quick"
    assert require_run("slow", runs[:1]) == (runs[0], "")
    evaluated = a_run("abcdef", "slow", **{PARENT_RUN_ID: runs[1].id})
    assert require_run("slow", [evaluated, runs[1]]) == (evaluated, "")


def test_of_runs_that_trained_an_experiments_result_the_newest_with_its_weights_is_taken(folder: Path) -> None:
    git("init", "-q")
    result("new", "k")
    runs = [trained("111111", "a", "k", "x.dir"), trained("222222", "b", "k"), trained("333333", "c", "k")]
    assert [require_run("new", part)[0].name for part in (runs, runs[:1])] == ["b", "a"]
