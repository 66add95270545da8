"""A training that is stopped goes on to the same bits and the same records."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from reprogpt.errors import NonFiniteError
from reprogpt.signals import StopRequest
from reprogpt.step_record import StepRecord
from reprogpt.training import checkpoint_io
from reprogpt.training.checkpointing import CheckpointedTraining
from reprogpt.training.loop import train
from reprogpt.training.run_dir import RunLock
from reprogpt.training.state import Training
from tests.tiny import tiny_training, weights_of

ORDERS = ["independent", "book"]
# tiny_training: 5 steps an epoch, 10 in all.


class StopAfter(StopRequest):
    """Asks to stop when `step` has been done."""

    def __init__(self, training: Training, step: int) -> None:
        super().__init__()
        self._training, self._step = training, step

    def reason(self) -> BaseException | None:
        return KeyboardInterrupt() if self._training.step > self._step else None


@pytest.fixture
def held(tmp_path: Path) -> RunLock:
    return RunLock("0" * 32, tmp_path, {"workspace": False})


def start(held: RunLock, **changes: Any) -> tuple[Training, CheckpointedTraining]:
    training = tiny_training(**{"eval_freq": 3, "save_seconds": 1e-9, **changes})
    return training, CheckpointedTraining(training, held)


def stop_after(step: int, held: RunLock, **changes: Any) -> None:
    """A start that ends by Ctrl-C after that step."""
    training, resumable = start(held, **changes)
    with pytest.raises(KeyboardInterrupt):
        list(resumable.run_until(StopAfter(training, step)))


def finish(held: RunLock, **changes: Any) -> tuple[list[bytes], list[StepRecord], list[int]]:
    """Weights and all records of a start that gets to the end, and the steps that it did itself."""
    training, resumable = start(held, **changes)
    done = [record.step for record in resumable.run_until(StopRequest())]
    return weights_of(training.model), resumable.records, done


def uninterrupted(**changes: Any) -> tuple[list[bytes], list[StepRecord]]:
    training = tiny_training(**{"eval_freq": 3, **changes})
    records = list(train(training))
    return weights_of(training.model), records


@pytest.mark.parametrize("random_order", ORDERS)
@pytest.mark.parametrize("step", [0, 2, 3, 4, 8])
def test_stopped_and_resumed_it_ends_in_the_same_bits_with_the_same_records(
    held: RunLock, random_order: str, step: int
) -> None:
    stop_after(step, held, random_order=random_order)
    torch.rand(7)  # another process has another stream
    weights, records, done = finish(held, random_order=random_order)
    assert done == list(range(step + 1, 10))
    assert (weights, records) == uninterrupted(random_order=random_order)


def test_stopped_after_each_step_it_ends_in_the_same_bits(held: RunLock) -> None:
    for step in range(9):
        stop_after(step, held)
    assert finish(held)[:2] == uninterrupted()


@pytest.mark.parametrize("step", [0, 2, 5, 7])
def test_records_that_are_fetched_together_are_saved_together(held: RunLock, step: int) -> None:
    """As on a GPU: between the first and the last record of a few steps, weights are ahead of the records."""
    training, resumable = start(held)
    training.log_interval = 4
    with pytest.raises(KeyboardInterrupt):
        list(resumable.run_until(StopAfter(training, step)))
    assert len(resumable.records) == training.step
    assert finish(held)[:2] == uninterrupted()


@pytest.mark.parametrize("save_seconds", [0.0, 1e-9, 1000.0])
def test_saving_often_or_never_changes_no_bit(held: RunLock, save_seconds: float) -> None:
    assert finish(held, save_seconds=save_seconds)[:2] == uninterrupted()


def killed_after(step: int, held: RunLock, **changes: Any) -> None:
    """A start that ends without a word: nothing is saved but what was saved on the way."""
    _, resumable = start(held, **changes)
    records: Iterator[StepRecord] = resumable.run_until(StopRequest())
    for record in records:
        if record.step == step:
            break
    resumable._sealer.shutdown()


@pytest.mark.parametrize("random_order", ORDERS)
def test_killed_it_repeats_the_steps_since_its_last_point(held: RunLock, random_order: str) -> None:
    killed_after(6, held, random_order=random_order)
    weights, records, done = finish(held, random_order=random_order)
    assert 0 < done[0] <= 6  # it resumed; the step that was killed is done again
    assert (weights, records) == uninterrupted(random_order=random_order)


def test_after_the_last_step_none_is_repeated(held: RunLock) -> None:
    first = finish(held)
    weights, records, done = finish(held)
    assert done == []
    assert (weights, records) == first[:2]


def test_points_never_take_more_than_their_share_of_the_time(held: RunLock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves 1 s a step and 0.09 s a point: 2 % allow one in 4.5 s, though one is due after each step."""
    now, saved = [0.0], []
    write = checkpoint_io.write

    def slow(point: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
        now[0] += 0.09
        saved.append(now[0])
        return write(point, tensors)

    monkeypatch.setattr(checkpoint_io, "write", slow)
    monkeypatch.setattr("reprogpt.training.checkpointing.time.monotonic", lambda: now[0])
    _, resumable = start(held)
    for _ in resumable.run_until(StopRequest()):
        now[0] += 1
        resumable._sealed()  # the disk, which keeps its own time, holds nothing up here
    assert saved == pytest.approx([1.09, 6.18, 10.27])  # after steps 0 and 5, and the last one at the end


def test_two_points_are_never_exceeded(held: RunLock) -> None:
    assert held.folder is not None
    _, resumable = start(held)
    for _ in resumable.run_until(StopRequest()):
        assert len(list(held.folder.glob("*.safetensors"))) <= 2
    assert len(checkpoint_io.committed(held.folder)) == 2


def damage(point: Path) -> None:
    tensors = point.with_suffix(".safetensors")
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)


def test_a_damaged_point_is_reported_and_the_one_before_it_taken(
    held: RunLock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert held.folder is not None
    stop_after(3, held)
    stop_after(6, held, save_seconds=0.0)
    newest, before = checkpoint_io.committed(held.folder)
    assert [checkpoint_io.read(point)[0] for point in (newest, before)] == [7, 4]
    damage(newest)
    weights, records, done = finish(held)
    assert f"a checkpoint is not used: {newest.name} is damaged" in capsys.readouterr().err
    assert done == list(range(4, 10))
    assert (weights, records) == uninterrupted()


def test_where_all_are_damaged_it_starts_from_the_beginning(held: RunLock) -> None:
    assert held.folder is not None
    stop_after(3, held)
    for point in checkpoint_io.committed(held.folder):
        damage(point)
    weights, records, done = finish(held)
    assert done == list(range(10))
    assert (weights, records) == uninterrupted()


def test_a_loss_that_is_not_finite_leaves_nothing_to_resume(held: RunLock) -> None:
    assert held.folder is not None
    training, resumable = start(held)
    records = resumable.run_until(StopRequest())
    for _ in range(3):
        next(records)
    training.model.final_norm.bias.data[0] = math.nan
    with pytest.raises(NonFiniteError):
        next(records)
    assert not held.folder.exists()


def test_a_disk_that_is_full_is_said_and_training_goes_on_with_the_point_before(
    held: RunLock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(2, held)
    write = checkpoint_io.write

    def full(point: Path, tensors: dict[str, torch.Tensor]) -> None:
        write(point, tensors)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_io, "write", full)
    assert finish(held)[:2] == uninterrupted()
    assert "no checkpoint at step 4: No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert finish(held)[2] == list(range(3, 10))


def test_without_a_folder_nothing_is_kept() -> None:
    held = RunLock("0" * 32, None, {"workspace": True})
    assert finish(held)[:2] == uninterrupted()
    assert finish(held)[2] == list(range(10))


def test_a_point_holds_the_records_to_the_last_bit(held: RunLock) -> None:
    assert held.folder is not None
    stop_after(4, held)
    *_, lines = checkpoint_io.read(checkpoint_io.committed(held.folder)[0])
    records = [json.loads(line) for line in lines.splitlines()]
    assert records == [asdict(record) for record in uninterrupted()[1][:5]]
    assert records[4]["sample"]
