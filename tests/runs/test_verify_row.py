"""verify of a row: what is compared, and which rows can't be tried."""

import json
import subprocess
from pathlib import Path

import pytest

from reprogpt.errors import PipelineError
from reprogpt.paths import EVAL_RESULTS, HISTORY, MODEL
from reprogpt.runs.results import COLUMNS, EVALUATION_COLUMNS, EVALUATIONS, Row, evaluation_rows, table_csv
from reprogpt.runs.verify import RunEnvironments
from reprogpt.runs.verify_row import RowRerun, _links, numbers_in, rerun_row

WEIGHTS = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"  # SHA-256 of "12345"
HISTORY_CSV = "step,loss,train_loss,val_loss\n0,5.0,5.0,5.5\n1,5.25,,\n2,4.0,3.0,4.5\n"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the outs of a training."""
    monkeypatch.chdir(tmp_path)
    for path in (HISTORY, MODEL / "model.safetensors", EVALUATIONS):
        path.parent.mkdir(parents=True, exist_ok=True)
    HISTORY.write_text(HISTORY_CSV, "utf-8")
    EVAL_RESULTS.write_text(json.dumps({"final_val_loss": 4.75}), "utf-8")
    (MODEL / "model.safetensors").write_text("12345", "utf-8")
    return tmp_path


def recorded(made: Path) -> Row:
    numbers, evaluations = numbers_in(made)
    lines = evaluation_rows(WEIGHTS, evaluations)
    EVALUATIONS.write_text(table_csv(EVALUATION_COLUMNS, lines), "utf-8")
    return dict.fromkeys(COLUMNS, "") | numbers | {"weights": WEIGHTS, "seed": "1"}


def rerun(row: Row, made: Path) -> RowRerun:
    return RowRerun(_links(row, made), RunEnvironments({}, {}))


def test_numbers_evaluations_and_weights_are_compared(made: Path) -> None:
    row = recorded(made)
    done = rerun(row, made)
    assert done.is_same
    names = [link.what for link in done.links]
    assert names[0] == "final_val_loss" and names[-2:] == ["2 evaluations", "weights"]
    assert {"last_train_loss", "best_val_loss", "loss_jump"} < set(names)


def test_another_last_digit_differs(made: Path) -> None:
    row = recorded(made)
    HISTORY.write_text(HISTORY_CSV.replace("5.0,5.5", "5.0,5.500000000000001"), "utf-8")
    done = rerun(row, made)
    (differing,) = [link for link in done.links if link.recorded != link.present]
    assert differing.what == "2 evaluations"
    assert (differing.recorded, differing.present) == ("step 0: 5.0 5.5", "step 0: 5.0 5.500000000000001")
    assert (done.is_same, done.begins) == (False, "evaluate")
    (MODEL / "model.safetensors").write_text("other", "utf-8")
    assert rerun(row, made).begins == "train"


def test_an_evaluation_that_was_not_made_is_missed(made: Path) -> None:
    row = recorded(made)
    HISTORY.write_text("".join(HISTORY_CSV.splitlines(keepends=True)[:3]), "utf-8")
    evaluations = next(link for link in rerun(row, made).links if link.what == "2 evaluations")
    assert (evaluations.recorded, evaluations.present) == ("2 of 2", "1 of 2")


def test_a_commit_that_is_not_here_is_named_with_the_command_that_may_bring_it(made: Path) -> None:
    row = recorded(made) | {"commit": "1" * 40}
    subprocess.run(["git", "init", "-q"], check=True)
    with pytest.raises(PipelineError, match=rf"commit {'1' * 40} of this row is not in this clone; `git fetch`"):
        rerun_row(row)
