"""Going on with a training that was stopped, from its last resume point, to the same bits.

What is left of a training depends on the weights, AdamW's moments, the number of the step and, in book
order, the random stream. A resume point holds these, and the records so far, so that none is missing.
"""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import psutil
import torch
from torch import Tensor

from reprogpt.errors import NonFiniteError, Terminated
from reprogpt.stopping import Stopping, stop_softly
from reprogpt.training import points
from reprogpt.training.loop import StepRecord, train
from reprogpt.training.resume_folder import Held, discard, interrupted_elsewhere
from reprogpt.training.state import Training

MAX_SHARE = 0.02  # of a training's time that it may wait for its resume points
_WEIGHTS, _ORDER, _MOMENTS = "weights.", "order.", ("exp_avg", "exp_avg_sq")


class Resumable:
    """A training that is saved on its way, into the folder of `held`; made from one that has not begun.

    Of several processes the first has the folder; the others have None for `held`, and take part.

    A point is made every save_seconds (0 = none on the way), or less often where that would hold training up for
    more than MAX_SHARE of its time.

    records: of all steps so far, those of earlier starts included.
    """

    def __init__(self, training: Training, held: Held | None) -> None:
        self._training, self._folder = training, held.folder if held else None
        self.records: list[StepRecord] = []
        self._lines = bytearray()  # the records, each encoded once: of many, that takes longer than writing them
        self._sealer = ThreadPoolExecutor(1)
        self._sealing: Future[None] | None = None
        self._sound: Path | None = None  # the last sealed point
        self._restore()
        if held and not self.records and (other := interrupted_elsewhere(held)):
            _say("starting afresh: the training that was interrupted was another one\n  " + "\n  ".join(other))
        self._saved_step, self._saved_at, self._waited = training.step, time.monotonic(), 0.0

    def until_stopped(self, launcher: psutil.Process | None) -> Iterator[StepRecord]:
        """go_on, to be stopped by a signal after a step, or where launcher, if there is one, is gone."""
        with stop_softly(launcher, quiet=not self._training.group.is_first) as stopping:
            yield from self.go_on(stopping)

    def go_on(self, stopping: Stopping) -> Iterator[StepRecord]:
        """Train to the end, yielding a record per step still to be done.

        At the end a last point is left, with which no step need be repeated until the outs are in place.
        Raises what stopping says, after a save; NonFiniteError, after which there is nothing to go on from.
        """
        try:
            for record in train(self._training):
                self.records.append(record)
                self._lines += json.dumps(asdict(record), allow_nan=False).encode() + b"\n"
                yield record
                if record.step + 1 == self._training.step:  # no record is missing
                    self._save_or_stop(stopping)
            self._save()
            self._sealed()
        except NonFiniteError:
            self._sealed()
            if self._folder is not None:
                discard(self._folder)
            raise

    def _save_or_stop(self, stopping: Stopping) -> None:
        """Save where it is time to, by the first process's clock; stop where any process is asked to."""
        group, seconds = self._training.group, self._training.params.save_seconds
        reason = stopping.reason()
        if group.largest(reason is not None):
            self._save()
            self._sealed()
            raise reason or Terminated
        due = time.monotonic() - self._saved_at >= max(seconds, self._waited / MAX_SHARE)
        if seconds > 0 and group.of_first(due and (self._sealing is None or self._sealing.done())):
            self._save()

    def _save(self) -> None:
        """Start a resume point; training may go on when this returns, though the point is not yet sealed."""
        self._sealed()
        step, group = self._training.step, self._training.group
        if not group.of_first(self._folder is not None and step != self._saved_step):
            return
        tensors = group.whole(_tensors(self._training))
        if self._folder is not None:
            self._copy_out(self._folder, step, tensors)

    def _copy_out(self, folder: Path, step: int, tensors: dict[str, Tensor]) -> None:
        point = next(place for place in points.places(folder) if place != self._sound)
        self._saved_step, started = step, time.monotonic()
        try:
            digests = points.copy_out(point, tensors)
        except OSError as error:
            _say_not_saved(step, error)
            points.remove(point)
            return
        finally:
            self._saved_at = time.monotonic()
            self._waited = self._saved_at - started
        self._sealing = self._sealer.submit(self._seal, point, step, digests, bytes(self._lines))

    def _seal(self, point: Path, step: int, digests: dict[str, str], records: bytes) -> None:
        try:
            points.seal(point, step, digests, records)
            self._sound = point
        except OSError as error:
            _say_not_saved(step, error)
            points.remove(point)

    def _sealed(self) -> None:
        if self._sealing is not None:
            self._sealing.result()

    def _restore(self) -> None:
        """Take up the newest sound point, if there is one."""
        step, tensors, lines = self._newest_point() or (0, {}, b"")
        step = self._training.group.of_first(step)
        if step:
            _load(self._training, step, tensors)
            self.records = [StepRecord(**json.loads(line)) for line in lines.splitlines()]
            self._lines[:] = lines

    def _newest_point(self) -> tuple[int, dict[str, Tensor], bytes] | None:
        """Step, tensors and records of the newest sound point. A damaged one is reported and removed."""
        for point in points.sealed_points(self._folder) if self._folder else []:
            try:
                self._sound, found = point, points.read_point(point)
                return found
            except points.DamagedPointError as error:
                _say(f"a resume point is not used: {error}")
                points.remove(point)
        self._sound = None
        return None


def train_along(training: Training, launcher: psutil.Process | None) -> None:
    """Do the share of a process that is not the first, to the end of the training."""
    for _ in Resumable(training, held=None).until_stopped(launcher):
        pass
    training.group.whole(training.model.state_dict())  # for the first, which saves it


def _tensors(training: Training) -> dict[str, Tensor]:
    """All that go on from here takes, by name; after the last step the weights alone."""
    tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in training.model.state_dict().items()}
    if training.step == training.plan.total_steps:
        return tensors
    for name, parameter in training.model.named_parameters():
        state = training.optimizer.state[parameter]
        tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS}
    return tensors | {f"{_ORDER}{name}": tensor for name, tensor in training.order.state().items()}


def _load(training: Training, step: int, tensors: dict[str, Tensor]) -> None:
    """The inverse of _tensors, whose result the first process has; others have none."""
    training.step = step
    give = training.group.give
    for name, tensor in training.model.state_dict().items():
        give(tensors.get(f"{_WEIGHTS}{name}"), tensor)
    if step == training.plan.total_steps:
        return
    for name, parameter in training.model.named_parameters():
        state = {moment: torch.zeros_like(parameter, requires_grad=False) for moment in _MOMENTS}
        for moment, tensor in state.items():
            give(tensors.get(f"{moment}.{name}"), tensor)
        training.optimizer.state[parameter] = {"step": torch.tensor(float(step), device=parameter.device), **state}
    order = {name.removeprefix(_ORDER): tensor for name, tensor in tensors.items() if name.startswith(_ORDER)}
    training.order.load_state(order)


def _say_not_saved(step: int, error: OSError) -> None:
    _say(f"no resume point at step {step}: {error.strerror or error}; training goes on, the point before it stays")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
