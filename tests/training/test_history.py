"""The history of a training as text, and its summary."""

import csv
import io
from typing import Any

from dvc.repo.metrics.show import _extract_metrics

from reprogpt.params.train import TrainParams
from reprogpt.step_record import StepRecord
from reprogpt.training.history import evaluations_csv, history_csv, summary
from reprogpt.training.schedule import Plan
from tests.tiny import PARAMS

PLAN = Plan(steps_per_epoch=2, total_steps=4, warmup_steps=1, decay_start=1, first_clipped_step=2)


def record(step: int, val_loss: float | None = None, loss: float = 3.0) -> StepRecord:
    train_loss = None if val_loss is None else val_loss / 2
    return StepRecord(step, step // 2, 16 * (step + 1), 0.1, loss, 0.5, 0.25, 2.0, train_loss, val_loss, sample=[1, 2])


def test_history_has_a_row_per_step_under_the_field_names() -> None:
    assert history_csv([record(0, 4.0), record(1)]) == (
        "step,epoch,tokens_seen,lr,loss,max_grad,max_grad_clipped,grad_norm,train_loss,val_loss\n"
        "0,0,16,0.1,3.0,0.5,0.25,2.0,2.0,4.0\n"
        "1,0,32,0.1,3.0,0.5,0.25,2.0,,\n"
    )


def test_evaluations_have_no_empty_cell() -> None:
    assert evaluations_csv([record(0, 4.0), record(1), record(2, 3.0)]) == (
        "step,epoch,tokens_seen,train_loss,val_loss\n0,0,16,2.0,4.0\n2,1,48,1.5,3.0\n"
    )
    assert evaluations_csv([record(1)]).count("\n") == 1


def test_numbers_read_back_bit_for_bit() -> None:
    losses = [1 / 3, 1e-320, 0.1 + 0.2, 123456789.123456789, 5e-324]
    text = history_csv([record(step, loss=loss) for step, loss in enumerate(losses)])
    assert [float(row["loss"]) for row in csv.DictReader(io.StringIO(text))] == losses


def test_without_steps_there_is_only_the_header() -> None:
    assert history_csv([]).count("\n") == 1


def facts(*records: StepRecord, max_norm: float | None = 1.0) -> dict[str, Any]:
    params = TrainParams(**PARAMS | {"max_norm": max_norm})
    return summary(records, PLAN, params, digests={"run_key": "d41d8cd98f00b204e9800998ecf8427e"}, kept_step=3)


def numbers(*records: StepRecord, max_norm: float | None = 1.0) -> dict[str, Any]:
    """What DVC shows: facts without lists."""
    return {name: value for name, value in facts(*records, max_norm=max_norm).items() if not isinstance(value, list)}


def test_summary_has_the_plan_and_the_last_and_best_evaluation() -> None:
    assert numbers(record(0, 9.0), record(1), record(2, 6.0), record(3, 8.0), max_norm=0.5) == {
        "max_norm": 0.5,
        "steps_per_epoch": 2,
        "total_steps": 4,
        "warmup_steps": 1,
        "last_train_loss": 4.0,
        "last_val_loss": 8.0,
        "best_val_loss": 6.0,
        "best_step": 2,
    }


def test_the_last_losses_are_those_of_the_last_evaluation_not_of_the_last_step() -> None:
    assert facts(record(0, 9.0), record(1))["last_val_loss"] == 9.0


def test_the_first_of_equally_good_steps_is_the_best() -> None:
    assert facts(record(0, 6.0), record(1, 6.0))["best_step"] == 0


def test_summary_without_evaluations_is_max_norm_and_the_plan() -> None:
    plan = {"steps_per_epoch": 2, "total_steps": 4, "warmup_steps": 1}
    assert numbers(record(0), record(1)) == {"max_norm": 1.0, **plan}


def test_digests_and_what_figures_need_are_in_lists_so_that_dvc_leaves_them_out_of_its_tables() -> None:
    in_lists = {
        "run_key": ["d41d8cd98f00b204e9800998ecf8427e"],
        "lr_decay": ["cosine"],
        "decay_start": [1],
        "first_clipped_step": [2],
        "keep": ["last"],
        "kept_step": [3],
    }
    written = facts(record(0, 9.0))
    assert {name: value for name, value in written.items() if isinstance(value, list)} == in_lists
    assert set(_extract_metrics(written, "train.json")) == written.keys() - in_lists
