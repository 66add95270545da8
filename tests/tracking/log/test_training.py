"""What a training queues for MLflow."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from reprogpt.progress import TrainingProgress
from reprogpt.step_record import StepRecord
from reprogpt.tracking.deliver.outbox import OutboxFile, open_outbox
from reprogpt.tracking.deliver.records import Points
from reprogpt.tracking.log.training import RunLogger


@pytest.fixture
def outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OutboxFile:
    monkeypatch.chdir(tmp_path)
    return open_outbox("a")


def records_of(val_losses: Sequence[float | None]) -> list[StepRecord]:
    """A step for each val_loss; None: a step that was not evaluated."""
    return [
        StepRecord(
            step=step,
            epoch=0,
            tokens_seen=16 * (step + 1),
            lr=0.1,
            loss=5.0,
            max_grad=1.0,
            max_grad_clipped=1.0,
            grad_norm=2.0,
            train_loss=None if loss is None else 1.0,
            val_loss=loss,
        )
        for step, loss in enumerate(val_losses)
    ]


def log(outbox: OutboxFile, earlier: Sequence[StepRecord], later: Sequence[StepRecord]) -> None:
    """As a process does that resumes after the earlier steps."""
    logger = RunLogger(outbox, TrainingProgress(99))
    logger.resume(earlier)
    for record in later:
        logger.log_step(record, is_latest=True)


def best_by_step(outbox: OutboxFile) -> dict[int, float]:
    points = [record for record in outbox.records() if isinstance(record, Points)]
    return {point.step: point.values["best_val_loss"] for point in points if "best_val_loss" in point.values}


def test_best_val_loss_is_the_lowest_so_far_at_each_evaluation(outbox: OutboxFile) -> None:
    log(outbox, [], records_of([4.0, None, 3.0, 3.5, None]))
    assert best_by_step(outbox) == {0: 4.0, 2: 3.0, 3: 3.0}


def test_a_resumed_training_remembers_the_lowest_val_loss_of_before(outbox: OutboxFile) -> None:
    steps = records_of([4.0, 2.0, 3.0, 3.5])
    log(outbox, [], steps[:3])
    log(outbox, steps[:2], steps[2:])  # the checkpoint is from before step 2, whose record was queued before the kill
    assert best_by_step(outbox) == {0: 4.0, 1: 2.0, 2: 2.0, 3: 2.0}


def test_without_evaluations_there_is_no_best_val_loss(outbox: OutboxFile) -> None:
    log(outbox, [], records_of([None, None]))
    assert best_by_step(outbox) == {}


def test_the_machine_is_measured_at_evaluations_only(outbox: OutboxFile) -> None:
    log(outbox, [], records_of([4.0, None, 3.0]))
    measured = [
        record.step
        for record in outbox.records()
        if isinstance(record, Points) and "system/cpu_utilization_percentage" in record.values
    ]
    assert measured == [0, 2]


def test_steps_from_before_a_resume_are_not_measured_again(outbox: OutboxFile) -> None:
    log(outbox, records_of([4.0]), [])
    (record,) = outbox.records()
    assert isinstance(record, Points) and not any(name.startswith("system/") for name in record.values)
