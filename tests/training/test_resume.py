"""A training that is stopped resumes to the same bits and the same records."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from reprogpt.errors import NonFiniteError
from reprogpt.process.stop import StopRequest
from reprogpt.step_record import StepRecord
from reprogpt.training import checkpoint_files
from reprogpt.training.build import Training
from reprogpt.training.loop import train
from reprogpt.training.resume import CheckpointedTraining
from reprogpt.training.run_dir import RunDirLock
from tests.tiny import tiny_training, weights_of

POLICIES = ["independent", "book"]
# tiny_training: 5 steps an epoch, 10 in all.


class StopAfter(StopRequest):
    """A request to stop once `step` has run."""

    def __init__(self, training: Training, step: int) -> None:
        super().__init__()
        self._training, self._step = training, step

    def reason(self) -> BaseException | None:
        return KeyboardInterrupt() if self._training.step > self._step else None


@pytest.fixture
def run_dir_lock(tmp_path: Path) -> RunDirLock:
    return RunDirLock("0" * 32, tmp_path, {"workspace": False})


def start(run_dir_lock: RunDirLock, **changes: Any) -> tuple[Training, CheckpointedTraining]:
    training = tiny_training(**{"eval_freq": 3, "save_seconds": 1e-9, **changes})
    return training, CheckpointedTraining(training, run_dir_lock)


def stop_after(step: int, run_dir_lock: RunDirLock, **changes: Any) -> None:
    """A start that is stopped by Ctrl-C after that step."""
    training, checkpointed = start(run_dir_lock, **changes)
    with pytest.raises(KeyboardInterrupt):
        list(checkpointed.run_until(StopAfter(training, step)))


def finish(run_dir_lock: RunDirLock, **changes: Any) -> tuple[list[bytes], list[StepRecord], list[int]]:
    """Weights and all records of a start that runs to the end, and the steps that it ran itself."""
    training, checkpointed = start(run_dir_lock, **changes)
    steps = [record.step for record in checkpointed.run_until(StopRequest())]
    return weights_of(training.model), checkpointed.records, steps


def uninterrupted(**changes: Any) -> tuple[list[bytes], list[StepRecord]]:
    training = tiny_training(**{"eval_freq": 3, **changes})
    records = list(train(training))
    return weights_of(training.model), records


@pytest.mark.parametrize("random_order", POLICIES)
@pytest.mark.parametrize("step", [0, 2, 3, 4, 8])
def test_stopped_and_resumed_it_ends_in_the_same_bits_with_the_same_records(
    run_dir_lock: RunDirLock, random_order: str, step: int
) -> None:
    stop_after(step, run_dir_lock, random_order=random_order)
    torch.rand(7)  # another process has another generator state
    weights, records, done = finish(run_dir_lock, random_order=random_order)
    assert done == list(range(step + 1, 10))
    assert (weights, records) == uninterrupted(random_order=random_order)


INTERVENTIONS: list[dict[str, Any]] = [
    {"decay_matrices_only": True, "weight_decay": 10.0, "beta1": 0.8, "beta2": 0.95, "eps": 0.001},
    {"lr_decay": "wsd", "decay_ratio": 0.5, "max_norm": None},
    {"lr_decay": "linear", "max_norm": 0.5, "clip_from": "start"},
    {"tie_weights": True},
]


@pytest.mark.parametrize("changes", INTERVENTIONS, ids=str)
def test_each_intervention_resumes_to_the_same_bits(run_dir_lock: RunDirLock, changes: dict[str, Any]) -> None:
    stop_after(3, run_dir_lock, **changes)
    weights, records, done = finish(run_dir_lock, **changes)
    assert done == list(range(4, 10))
    assert (weights, records) == uninterrupted(**changes)


def best_weights(**changes: Any) -> tuple[int, list[bytes]]:
    """Step and weights of the evaluation with the lowest val_loss, of a training that is watched from outside."""
    training = tiny_training(**{"eval_freq": 3, **changes})
    evaluated = [
        (record.val_loss, record.step, weights_of(training.model))
        for record in train(training)
        if record.val_loss is not None
    ]
    _, step, weights = min(evaluated, key=lambda item: item[0])
    return step, weights


@pytest.mark.parametrize("random_order", POLICIES)
@pytest.mark.parametrize("step", [2, 3, 5, 8])
def test_with_keep_best_the_weights_of_the_best_evaluation_survive_a_stop(
    run_dir_lock: RunDirLock, random_order: str, step: int
) -> None:
    changes = {"keep": "best", "random_order": random_order, "peak_lr": 0.005, "seed": 10}
    best_step, wanted = best_weights(**changes)
    assert best_step in (3, 6)  # neither the first evaluation nor the last, so that both mistakes are seen
    stop_after(step, run_dir_lock, **changes)
    training, checkpointed = start(run_dir_lock, **changes)
    list(checkpointed.run_until(StopRequest()))
    assert checkpointed.kept_step == best_step
    assert [tensor.numpy().tobytes() for tensor in checkpointed.kept_weights().values()] == wanted
    assert weights_of(training.model) == uninterrupted(**changes | {"keep": "last"})[0]  # the same path


def test_with_keep_best_a_training_that_had_ended_has_its_best_weights_again(run_dir_lock: RunDirLock) -> None:
    changes = {"keep": "best", "peak_lr": 0.005, "seed": 10}
    finish(run_dir_lock, **changes)
    _, checkpointed = start(run_dir_lock, **changes)
    assert list(checkpointed.run_until(StopRequest())) == []
    kept = [tensor.numpy().tobytes() for tensor in checkpointed.kept_weights().values()]
    assert (checkpointed.kept_step, kept) == best_weights(**changes)


def test_a_finished_training_that_is_given_more_epochs_is_told_that_it_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lock = {"stages": {"train": {"cmd": "c", "params": {"params.yaml": {"n_epochs": 2}}, "deps": [], "outs": []}}}
    Path("dvc.lock").write_text(json.dumps(lock))
    origin = {"workspace": True, "inputs": {"params": {"n_epochs": 3}, "deps": {}}, "environment": {}}
    start(RunDirLock("0" * 32, tmp_path, origin), n_epochs=3)
    message = capsys.readouterr().err
    assert "n_epochs 2 -> 3 does not lengthen the finished training" in message and "set init_from to start" in message


def test_with_keep_last_the_weights_are_those_of_the_last_step(run_dir_lock: RunDirLock) -> None:
    training, checkpointed = start(run_dir_lock)
    list(checkpointed.run_until(StopRequest()))
    assert checkpointed.kept_step == 9
    assert [tensor.numpy().tobytes() for tensor in checkpointed.kept_weights().values()] == weights_of(training.model)


def test_stopped_after_each_step_it_ends_in_the_same_bits(run_dir_lock: RunDirLock) -> None:
    for step in range(9):
        stop_after(step, run_dir_lock)
    assert finish(run_dir_lock)[:2] == uninterrupted()


@pytest.mark.parametrize("step", [0, 2, 5, 7])
def test_records_that_are_fetched_together_are_saved_together(run_dir_lock: RunDirLock, step: int) -> None:
    """As on a GPU: between the first and the last record of a few steps, the weights are ahead of the records."""
    training, checkpointed = start(run_dir_lock)
    training.log_interval = 4
    with pytest.raises(KeyboardInterrupt):
        list(checkpointed.run_until(StopAfter(training, step)))
    assert len(checkpointed.records) == training.step
    assert finish(run_dir_lock)[:2] == uninterrupted()


@pytest.mark.parametrize("save_seconds", [0.0, 1e-9, 1000.0])
def test_saving_often_or_never_changes_no_bit(run_dir_lock: RunDirLock, save_seconds: float) -> None:
    assert finish(run_dir_lock, save_seconds=save_seconds)[:2] == uninterrupted()


def killed_after(step: int, run_dir_lock: RunDirLock, **changes: Any) -> None:
    """A start that is killed: only the checkpoints saved on the way are left."""
    _, checkpointed = start(run_dir_lock, **changes)
    records: Iterator[StepRecord] = checkpointed.run_until(StopRequest())
    for record in records:
        if record.step == step:
            break
    checkpointed._committer.shutdown()


@pytest.mark.parametrize("random_order", POLICIES)
def test_killed_it_repeats_the_steps_since_its_latest_checkpoint(run_dir_lock: RunDirLock, random_order: str) -> None:
    killed_after(6, run_dir_lock, random_order=random_order)
    weights, records, done = finish(run_dir_lock, random_order=random_order)
    assert 0 < done[0] <= 6  # it resumed; the step that was killed runs again
    assert (weights, records) == uninterrupted(random_order=random_order)


def test_after_the_last_step_none_is_repeated(run_dir_lock: RunDirLock) -> None:
    first = finish(run_dir_lock)
    weights, records, done = finish(run_dir_lock)
    assert done == []
    assert (weights, records) == first[:2]


def test_checkpoints_never_take_more_than_their_share_of_the_time(
    run_dir_lock: RunDirLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that moves 1 s a step and 0.09 s a checkpoint: 2 % allow one in 4.5 s, though one is due each step."""
    now, saved = [0.0], []
    write = checkpoint_files.write

    def slow(checkpoint: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
        now[0] += 0.09
        saved.append(now[0])
        return write(checkpoint, tensors)

    monkeypatch.setattr(checkpoint_files, "write", slow)
    monkeypatch.setattr("reprogpt.training.resume.time.monotonic", lambda: now[0])
    _, checkpointed = start(run_dir_lock)
    for _ in checkpointed.run_until(StopRequest()):
        now[0] += 1
        checkpointed._wait_for_commit()  # the disk has a clock of its own
    assert saved == pytest.approx([1.09, 6.18, 10.27])  # after steps 0 and 5, and the last one at the end


def test_there_are_never_more_than_two_checkpoints(run_dir_lock: RunDirLock) -> None:
    assert run_dir_lock.run_dir is not None
    _, checkpointed = start(run_dir_lock)
    for _ in checkpointed.run_until(StopRequest()):
        assert len(list(run_dir_lock.run_dir.glob("*.safetensors"))) <= 2
    assert len(checkpoint_files.committed(run_dir_lock.run_dir)) == 2


def corrupt(checkpoint: Path) -> None:
    tensors = checkpoint.with_suffix(".safetensors")
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)


def test_a_corrupt_checkpoint_is_reported_and_the_one_before_it_used(
    run_dir_lock: RunDirLock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_dir_lock.run_dir is not None
    stop_after(3, run_dir_lock)
    stop_after(6, run_dir_lock, save_seconds=0.0)
    newest, before = checkpoint_files.committed(run_dir_lock.run_dir)
    assert [checkpoint_files.read(checkpoint, run_dir_lock.training_id)[0] for checkpoint in (newest, before)] == [7, 4]
    corrupt(newest)
    weights, records, done = finish(run_dir_lock)
    assert f"a checkpoint is skipped: {newest.name} failed its SHA-256 check" in capsys.readouterr().err
    assert done == list(range(4, 10))
    assert (weights, records) == uninterrupted()


def test_if_all_are_corrupt_it_starts_from_the_beginning(run_dir_lock: RunDirLock) -> None:
    assert run_dir_lock.run_dir is not None
    stop_after(3, run_dir_lock)
    for checkpoint in checkpoint_files.committed(run_dir_lock.run_dir):
        corrupt(checkpoint)
    weights, records, done = finish(run_dir_lock)
    assert done == list(range(10))
    assert (weights, records) == uninterrupted()


@pytest.mark.parametrize("change", [{"seed": 8}, {"drop_rate": 0.3}])
def test_a_checkpoint_copied_from_another_training_is_refused(
    run_dir_lock: RunDirLock, tmp_path: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_dir_lock.run_dir is not None
    other = RunDirLock("f" * 32, tmp_path / "other", {"workspace": False})
    (tmp_path / "other").mkdir()
    stop_after(3, other, **change)
    for path in (tmp_path / "other").iterdir():
        shutil.copy(path, run_dir_lock.run_dir)
    weights, records, done = finish(run_dir_lock)
    assert "a checkpoint is skipped: checkpoint-a was saved by another training" in capsys.readouterr().err
    assert done == list(range(10))
    assert (weights, records) == uninterrupted()


def test_a_loss_that_is_not_finite_leaves_nothing_to_resume(run_dir_lock: RunDirLock) -> None:
    assert run_dir_lock.run_dir is not None
    training, checkpointed = start(run_dir_lock)
    records = checkpointed.run_until(StopRequest())
    for _ in range(3):
        next(records)
    training.model.final_norm.bias.data[0] = math.nan
    with pytest.raises(NonFiniteError):
        next(records)
    assert not run_dir_lock.run_dir.exists()


def test_a_full_disk_before_the_first_checkpoint_names_no_previous_one(
    run_dir_lock: RunDirLock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(checkpoint: Path, tensors: dict[str, torch.Tensor]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "write", full)
    assert finish(run_dir_lock)[:2] == uninterrupted()
    printed = capsys.readouterr().err
    assert "No space left on device; training continues\n" in printed and "previous" not in printed


def test_a_full_disk_is_reported_and_the_previous_checkpoint_kept(
    run_dir_lock: RunDirLock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(2, run_dir_lock)
    write = checkpoint_files.write

    def full(checkpoint: Path, tensors: dict[str, torch.Tensor]) -> None:
        write(checkpoint, tensors)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "write", full)
    assert finish(run_dir_lock)[:2] == uninterrupted()
    message = "no checkpoint at step 4: No space left on device; training continues, the previous one is kept"
    assert message in capsys.readouterr().err
    monkeypatch.undo()
    assert finish(run_dir_lock)[2] == list(range(3, 10))


def test_without_a_run_directory_nothing_is_saved() -> None:
    run_dir_lock = RunDirLock("0" * 32, None, {"workspace": True, "inputs": {"params": {}}})
    assert finish(run_dir_lock)[:2] == uninterrupted()
    assert finish(run_dir_lock)[2] == list(range(10))


def test_a_checkpoint_holds_the_records_to_the_last_bit(run_dir_lock: RunDirLock) -> None:
    assert run_dir_lock.run_dir is not None
    stop_after(4, run_dir_lock)
    *_, lines = checkpoint_files.read(checkpoint_files.committed(run_dir_lock.run_dir)[0], run_dir_lock.training_id)
    records = [json.loads(line) for line in lines.splitlines()]
    assert records == [asdict(record) for record in uninterrupted()[1][:5]]
    assert records[4]["sample"]
