"""Resumes a training from its latest valid checkpoint, to the same bits, and saves checkpoints while it runs.

The rest of a training depends on the weights, AdamW's moments, the step number and, with the book's policy, the
generator's state. A checkpoint contains these, and the step records so far, so that none is missing after a resume.
With keep: best it also contains the weights of the best evaluation so far.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import psutil
import torch
from torch import Tensor

from reprogpt.errors import NonFiniteError, Terminated
from reprogpt.messages import print_message
from reprogpt.process.stop import StopRequest, graceful_shutdown
from reprogpt.step_record import StepRecord
from reprogpt.training import checkpoint_files
from reprogpt.training.build import Training
from reprogpt.training.loop import train
from reprogpt.training.run_dir import RunDirLock, changes_since_interrupted, raised_epochs, remove_run_dir

MAX_SAVING_SHARE = 0.02  # of a training's time that may be spent waiting for checkpoints
_WEIGHTS = "weights."
_BEST_WEIGHTS = "best."
_RANDOMNESS = "randomness."
_MOMENTS = ("exp_avg", "exp_avg_sq")


class CheckpointedTraining:
    """A training that saves checkpoints into its run directory.

    Created from a training at step 0, it resumes from the latest valid checkpoint, if there is one. With several
    processes, rank 0 has the run directory; the others pass run_dir_lock=None and take part in the collectives.

    A checkpoint is saved every save_seconds (0: only at the end or when stopped), and less often if saving would
    take more than MAX_SAVING_SHARE of the training's time.

    records: of all steps so far, including those before a resume.
    """

    def __init__(self, training: Training, run_dir_lock: RunDirLock | None) -> None:
        self._training = training
        self._run_dir = run_dir_lock.run_dir if run_dir_lock else None
        self._training_id = run_dir_lock.training_id if run_dir_lock else ""
        self.records: list[StepRecord] = []
        self._lines = bytearray()  # the records as JSON lines, so that a checkpoint need not encode all of them again
        self._committer = ThreadPoolExecutor(1)
        self._commit: Future[None] | None = None  # the latest commit, perhaps still running
        self._newest: Path | None = None  # the latest committed checkpoint
        self._best_weights: dict[str, Tensor] = {}  # with keep: best, on the CPU of rank 0
        self._best: StepRecord | None = None  # the first of the records with the lowest val_loss
        self._resume()
        if run_dir_lock and not self.records:
            changes = changes_since_interrupted(run_dir_lock)
            if changes:
                print_message(
                    "starting from step 0: the interrupted training differs from this one\n  " + "\n  ".join(changes)
                )
            elif epochs := raised_epochs(run_dir_lock):
                print_message(
                    f"n_epochs {epochs[0]} -> {epochs[1]} does not lengthen the finished training: the learning rate "
                    "schedule spans all\nsteps, so this is another training, which starts from step 0. To "
                    f"continue from the finished weights instead, set n_epochs\nback to {epochs[0]}, run "
                    "`dvc repro` and `cp -r data/model start`, and set init_from to start"
                )
        self._saved_step = training.step
        self._saved_at = time.monotonic()
        self._saving_seconds = 0.0

    def run(self, launcher: psutil.Process | None) -> Iterator[StepRecord]:
        """Train to the end, yielding a record per remaining step.

        The first Ctrl-C or SIGTERM, or the end of the launcher process, saves a checkpoint after the current step
        and raises the matching exception. After the last step a checkpoint is saved, too, so that a kill before DVC
        has recorded the outs loses no step. Raises NonFiniteError, after which there is nothing to resume.
        """
        with graceful_shutdown(launcher, quiet=not self._training.group.is_first) as stop_request:
            yield from self.run_until(stop_request)

    def run_until(self, stop_request: StopRequest) -> Iterator[StepRecord]:
        """run(), stopped by the given request."""
        try:
            for record in train(self._training):
                self._append(record)
                if self._training.params.keep == "best" and record.val_loss is not None:
                    self._keep_if_best(record)
                yield record
                if record.step + 1 == self._training.step:  # all records up to this state have been yielded
                    self._save_or_stop(stop_request)
            self._save()
            self._wait_for_commit()
        except NonFiniteError:
            self._wait_for_commit()
            if self._run_dir is not None:
                remove_run_dir(self._run_dir)
            raise

    def kept_weights(self) -> dict[str, Tensor]:
        """After run(): the full weights that `keep` selects, by name, on rank 0. A collective."""
        if self._training.params.keep == "best":
            return self._best_weights
        return self._training.group.gather_state(self._training.model.weights())

    @property
    def kept_step(self) -> int:
        """After run(), on rank 0: the 0-based step after which the model had kept_weights()."""
        if self._training.params.keep == "best":
            assert self._best is not None
            return self._best.step
        return self._training.plan.total_steps - 1

    def _keep_if_best(self, record: StepRecord) -> None:
        """Copy the current weights if their val_loss, in rank 0's records, is the lowest so far."""
        group = self._training.group
        if group.broadcast_object(_is_better(record, self._best)):
            self._best = record
            gathered = group.gather_state(self._training.model.weights())
            if group.is_first:
                self._best_weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in gathered.items()}

    def _append(self, record: StepRecord) -> None:
        self.records.append(record)
        self._lines += json.dumps(asdict(record), allow_nan=False).encode() + b"\n"

    def _save_or_stop(self, stop_request: StopRequest) -> None:
        """Save if due by rank 0's clock; save and stop if any process was asked to stop."""
        group = self._training.group
        reason = stop_request.reason()
        if group.all_reduce_max(reason is not None):
            self._save()
            self._wait_for_commit()
            raise reason or Terminated
        save_seconds = self._training.params.save_seconds
        if save_seconds > 0 and group.broadcast_object(self._is_due(save_seconds)):
            self._save()

    def _is_due(self, save_seconds: float) -> bool:
        interval = max(save_seconds, self._saving_seconds / MAX_SAVING_SHARE)
        is_idle = self._commit is None or self._commit.done()
        return is_idle and time.monotonic() - self._saved_at >= interval

    def _save(self) -> None:
        """Write a checkpoint of the current step; a background thread commits it while training continues."""
        self._wait_for_commit()
        group = self._training.group
        step = self._training.step
        if not group.broadcast_object(self._run_dir is not None and step != self._saved_step):
            return
        tensors = group.gather_state(_state_tensors(self._training))
        tensors |= {f"{_BEST_WEIGHTS}{name}": tensor for name, tensor in self._best_weights.items()}
        if self._run_dir is not None:
            self._write(self._run_dir, step, tensors)

    def _write(self, run_dir: Path, step: int, tensors: dict[str, Tensor]) -> None:
        checkpoint = next(slot for slot in checkpoint_files.slots(run_dir) if slot != self._newest)
        self._saved_step = step
        started = time.monotonic()
        try:
            digests = checkpoint_files.write(checkpoint, tensors)
        except OSError as error:
            self._warn_not_saved(step, error)
            checkpoint_files.remove(checkpoint)
            return
        finally:
            self._saved_at = time.monotonic()
            self._saving_seconds = self._saved_at - started
        self._commit = self._committer.submit(self._commit_checkpoint, checkpoint, step, digests, bytes(self._lines))

    def _commit_checkpoint(self, checkpoint: Path, step: int, digests: dict[str, str], records: bytes) -> None:
        try:
            checkpoint_files.commit(checkpoint, step, digests, records, self._training_id)
            self._newest = checkpoint
        except OSError as error:
            self._warn_not_saved(step, error)
            checkpoint_files.remove(checkpoint)

    def _warn_not_saved(self, step: int, error: OSError) -> None:
        previous = ", the previous one is kept" if self._newest else ""
        print_message(f"no checkpoint at step {step}: {error.strerror or error}; training continues{previous}")

    def _wait_for_commit(self) -> None:
        if self._commit is not None:
            self._commit.result()

    def _resume(self) -> None:
        """Load the latest valid checkpoint, if there is one."""
        step, tensors, lines = self._latest_valid() or (0, {}, b"")
        step = self._training.group.broadcast_object(step)
        if step:
            _load_state_tensors(self._training, step, tensors)
            self.records = [StepRecord(**json.loads(line)) for line in lines.splitlines()]
            self._lines[:] = lines
            # Copies: these tensors are mapped from the checkpoint's file, which a later checkpoint overwrites.
            self._best_weights = {
                name.removeprefix(_BEST_WEIGHTS): tensor.clone()
                for name, tensor in tensors.items()
                if name.startswith(_BEST_WEIGHTS)
            }
            for record in self.records:
                if record.val_loss is not None and _is_better(record, self._best):
                    self._best = record

    def _latest_valid(self) -> tuple[int, dict[str, Tensor], bytes] | None:
        """Step, tensors and records of the latest valid checkpoint. Invalid ones are reported and removed."""
        if self._run_dir is None:
            return None
        for checkpoint in checkpoint_files.committed(self._run_dir):
            try:
                contents = checkpoint_files.read(checkpoint, self._training_id)
            except checkpoint_files.CorruptCheckpointError as error:
                print_message(f"a checkpoint is skipped: {error}")
                checkpoint_files.remove(checkpoint)
                continue
            self._newest = checkpoint
            return contents
        return None


def run_worker(training: Training, launcher: psutil.Process | None) -> None:
    """Train to the end in a process other than rank 0."""
    checkpointed = CheckpointedTraining(training, run_dir_lock=None)
    for _ in checkpointed.run(launcher):
        pass
    checkpointed.kept_weights()  # rank 0 saves them


def _is_better(record: StepRecord, best: StepRecord | None) -> bool:
    """Whether an evaluated record has a lower val_loss than the best so far."""
    assert record.val_loss is not None
    return best is None or best.val_loss is None or record.val_loss < best.val_loss


def _state_tensors(training: Training) -> dict[str, Tensor]:
    """Everything that a resume needs, by name; after the last step the weights only."""
    tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in training.model.weights().items()}
    if training.step == training.plan.total_steps:
        return tensors
    for name, parameter in training.model.named_parameters():
        state = training.optimizer.state[parameter]
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = state[moment]
    for name, tensor in training.randomness.state().items():
        tensors[f"{_RANDOMNESS}{name}"] = tensor
    return tensors


def _load_state_tensors(training: Training, step: int, tensors: dict[str, Tensor]) -> None:
    """The inverse of _state_tensors. Rank 0 passes the tensors; other processes pass {}."""
    training.step = step
    broadcast_tensor = training.group.broadcast_tensor
    for name, tensor in training.model.weights().items():
        broadcast_tensor(tensors.get(f"{_WEIGHTS}{name}"), tensor)
    if step == training.plan.total_steps:
        return
    for name, parameter in training.model.named_parameters():
        state = {"step": torch.tensor(float(step), device=parameter.device)}
        for moment in _MOMENTS:
            state[moment] = torch.zeros_like(parameter, requires_grad=False)
            broadcast_tensor(tensors.get(f"{moment}.{name}"), state[moment])
        training.optimizer.state[parameter] = state
    randomness = {
        name.removeprefix(_RANDOMNESS): tensor for name, tensor in tensors.items() if name.startswith(_RANDOMNESS)
    }
    training.randomness.load_state(randomness)
