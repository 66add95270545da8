"""Which run an argument names, and the message where it names none or several."""

import pytest

from reprogpt.errors import PipelineError
from reprogpt.lineage.resolve_run import find_run, require_run
from reprogpt.tracking.runs import TrackedRun


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
    assert find_run(what, RUNS) == (run, "")


def test_an_id_goes_before_a_name() -> None:
    assert find_run("bbbbbb", RUNS) == (OLD, "")


def test_of_several_runs_with_one_name_the_newest_is_taken_with_a_remark() -> None:
    found = find_run("repro-1", RUNS)
    assert found is not None
    run, remark = found
    assert run is NEW
    assert remark.startswith("2 runs are named repro-1; this is the newest:")
    assert "aaaaaa10" in remark and "bbbbbb00" in remark


def test_digits_that_several_ids_start_with_are_refused_with_their_names() -> None:
    with pytest.raises(PipelineError, match=r"aaaaaa begins the ids of 2 runs; give more digits:\n.*repro-1\n.*bbbbbb"):
        find_run("aaaaaa", RUNS)


@pytest.mark.parametrize("what", ["ccccc", "repro", "unknown", "", "ffffff", "0" * 40])
def test_too_few_digits_and_unknown_words_name_none_and_what_is_known_is_listed(what: str) -> None:
    assert find_run(what, RUNS) is None
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
