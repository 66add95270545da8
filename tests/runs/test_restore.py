"""Commands that restore what a run was made from."""

import pytest

from reprogpt.runs.restore import repeat_commands
from reprogpt.tracking.store.tracked_run import TrackedRun

DOWNLOAD = "mlflow artifacts download -r a1 -a"


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
