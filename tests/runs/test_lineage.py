"""Which links of a dvc.lock hold, on a pipeline small enough to see, and the commands that repeat a run."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reprogpt.dvc.lock import recorded_inputs
from reprogpt.dvc.pipeline import run_key, run_key_of
from reprogpt.runs.lineage import UNLISTED, Link, check_links, repeat_commands
from reprogpt.tracking.store.tracked_run import TrackedRun

FILES = {"code.py": "c0", "raw.txt": "r0", "ids.npy": "i0", "model": "m0.dir", "train.json": "j0"}
STAGES: dict[str, Any] = {
    "tokenize": {"cmd": "tok", "deps": ["raw.txt"], "outs": ["ids.npy"]},
    "train": {
        "cmd": "fit",
        "deps": ["ids.npy", "code.py"],
        "params": ["seed", "peak_lr"],
        "outs": ["model"],
        "metrics": [{"train.json": {"cache": False}}],
    },
}
PARAMS = {"seed": 123, "peak_lr": 0.001, "top_k": 25}

DOWNLOAD = "mlflow artifacts download -r a1 -a"


def entries(*paths: str) -> list[dict[str, str]]:
    return [{"path": path, "md5": FILES[path]} for path in paths]


LOCK: dict[str, Any] = {
    "tokenize": {"cmd": "tok", "deps": entries("raw.txt"), "outs": entries("ids.npy")},
    "train": {
        "cmd": "fit",
        "deps": entries("ids.npy", "code.py"),
        "params": {"params.yaml": {"seed": 123, "peak_lr": 0.001}},
        "outs": entries("model", "train.json"),
    },
}


def links(
    lock: dict[str, Any] = LOCK,
    stages: dict[str, Any] = STAGES,
    params: dict[str, Any] = PARAMS,
    digest: Callable[[str], str | None] = FILES.get,
) -> dict[str, str]:
    """`stage: what` -> status of every link that does not hold."""
    found = check_links(lock, stages, params, digest)
    assert [stage.stage for stage in found] == list(stages)
    every = [(stage.stage, link) for stage in found for link in [*stage.inputs, *stage.outs]]
    return {f"{stage}: {link.what}": link.status for stage, link in every if link.status != "holds"}


def test_a_pipeline_as_recorded_holds() -> None:
    assert links() == {}
    found = check_links(LOCK, STAGES, PARAMS, FILES.get)[1]
    assert found.outs == [Link("model", "m0.dir", "m0.dir"), Link("train.json", "j0", "j0")]
    what = ["cmd", "dep ids.npy", "dep code.py", "param seed", "param peak_lr"]
    assert [link.what for link in found.inputs] == what


def test_an_altered_file_breaks_its_own_link_and_those_of_the_stages_that_read_it() -> None:
    broken = links(digest={**FILES, "ids.npy": "x"}.get)
    assert broken == {"tokenize: ids.npy": "DIFFERS", "train: dep ids.npy": "DIFFERS"}


def test_what_is_found_is_reported() -> None:
    (link,) = check_links(LOCK, STAGES, PARAMS, {**FILES, "ids.npy": "x"}.get)[0].outs
    assert link == Link("ids.npy", "i0", "x")


def test_a_file_that_is_not_here_breaks_nothing() -> None:
    without = {path: digest for path, digest in FILES.items() if path != "ids.npy"}
    assert links(digest=without.get) == {"tokenize: ids.npy": "not here"}
    assert links(digest=lambda path: None) == {
        "tokenize: dep raw.txt": "not here",
        "tokenize: ids.npy": "not here",
        "train: dep code.py": "not here",
        "train: model": "not here",
        "train: train.json": "not here",
    }


def test_a_stage_that_read_another_file_than_was_made_is_seen_without_the_file() -> None:
    lock = copy.deepcopy(LOCK)
    lock["tokenize"]["outs"][0]["md5"] = "x"
    without = {path: digest for path, digest in FILES.items() if path != "ids.npy"}
    assert links(lock=lock, digest=without.get) == {"tokenize: ids.npy": "not here", "train: dep ids.npy": "DIFFERS"}


def test_another_parameter_breaks_the_stage_that_lists_it() -> None:
    assert links(params={**PARAMS, "peak_lr": 0.002, "top_k": 1}) == {"train: param peak_lr": "DIFFERS"}
    found = check_links(LOCK, STAGES, {**PARAMS, "peak_lr": 0.002}, FILES.get)[1].inputs[-1]
    assert found == Link("param peak_lr", "0.001", "0.002")


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        ({"cmd": "other"}, "cmd"),
        ({"deps": ["ids.npy"]}, "dep code.py"),
        ({"deps": ["ids.npy", "code.py", "raw.txt"]}, "dep raw.txt"),
        ({"params": ["seed"]}, "param peak_lr"),
        ({"params": ["seed", "peak_lr", "top_k"]}, "param top_k"),
        ({"outs": []}, "model"),
        ({"outs": ["model", "more"]}, "more"),
    ],
)
def test_a_definition_that_changed_breaks_the_stage(changed: dict[str, Any], broken: str) -> None:
    assert links(stages={**STAGES, "train": {**STAGES["train"], **changed}}) == {f"train: {broken}": "DIFFERS"}


def test_what_a_definition_dropped_is_reported_as_no_longer_listed() -> None:
    stages = {**STAGES, "train": {**STAGES["train"], "deps": ["ids.npy"]}}
    inputs = check_links(LOCK, stages, PARAMS, FILES.get)[1].inputs
    assert Link("dep code.py", "c0", UNLISTED) in inputs


def test_a_stage_that_never_ran_has_no_links() -> None:
    found = check_links({"tokenize": LOCK["tokenize"]}, STAGES, PARAMS, FILES.get)[1]
    assert (found.inputs, found.outs) == ([], [])


def test_the_key_of_recorded_inputs_is_the_run_key_of_the_same_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real files, digested by dvc/digest.py itself: the two ways to the key must not part."""
    monkeypatch.chdir(tmp_path)
    for path, text in {
        "dvc.yaml": "stages:\n  train:\n    cmd: fit é\n    deps: [a.txt]\n    params: [peak_lr, word, flag]\n",
        "params.yaml": "flag: false\npeak_lr: 0.00001\nword: Jede Mühe\n",
        "a.txt": "text",
    }.items():
        Path(path).write_text(text, "utf-8")
    entry: dict[str, Any] = {
        "cmd": "fit é",
        "deps": [{"path": "a.txt", "hash": "md5", "md5": "1cb251ec0d568de6a929b520c4aed8d1", "size": 4}],
        "params": {"params.yaml": {"flag": False, "word": "Jede Mühe", "peak_lr": 1e-05}},
        "outs": [{"path": "model", "md5": "m"}],
    }
    assert run_key_of(recorded_inputs(entry)) == run_key()
    entry["params"]["params.yaml"]["flag"] = True
    assert run_key_of(recorded_inputs(entry)) != run_key()


@pytest.mark.parametrize(
    ("dirty", "patch"),
    [("false", []), ("true", [f"{DOWNLOAD} uncommitted.patch -d .", "git apply uncommitted.patch"])],
)
def test_a_run_is_repeated_from_its_commit_its_edits_and_its_parameters(dirty: str, patch: list[str]) -> None:
    run = TrackedRun(id="a1", name="n", status="FINISHED", tags={"commit": "c0", "dirty": dirty})
    first, *rest = repeat_commands(run)
    assert first == "git checkout c0"
    assert rest[:-2] == patch
    assert rest[-2] == f"{DOWNLOAD} params.yaml -d ." and rest[-1].startswith("dvc repro")


def test_a_run_without_a_commit_can_not_be_repeated() -> None:
    assert repeat_commands(TrackedRun(id="a1", name="n", status="FINISHED")) == []
