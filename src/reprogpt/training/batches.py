"""Batches of training rows on the device; the next one is copied while the current step runs."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reprogpt.data.windows import Windows
from reprogpt.training.randomness import RandomnessPolicy
from reprogpt.training.schedule import Plan


@dataclass(frozen=True)
class Batch:
    """Rows in memory. inputs, targets: (b, T) int64."""

    inputs: np.ndarray
    targets: np.ndarray

    def take(self, rows: np.ndarray | slice) -> "Batch":
        """The rows at these indices."""
        return Batch(self.inputs[rows], self.targets[rows])


@dataclass(frozen=True)
class SplitRows:
    """All rows of a split, read on demand. inputs, targets: (w, T)."""

    inputs: Windows
    targets: Windows

    def take(self, rows: np.ndarray | slice) -> Batch:
        """The rows at these indices, in memory. Raises DataError if a token id is outside the vocabulary."""
        return Batch(self.inputs[rows], self.targets[rows])


DeviceBatch = tuple[Tensor, Tensor]  # inputs and targets, (b, T) int64 each


class BatchLoader:
    """This process's shard of each step's batch, on the device.

    On CUDA a batch is copied from pinned memory, without the host waiting for it. prefetch() queues the copy of the
    next batch behind the kernels of the current step.
    """

    def __init__(
        self,
        rows: SplitRows,
        randomness: RandomnessPolicy,
        plan: Plan,
        *,
        batch_size: int,
        shard: slice,
        device: torch.device,
    ) -> None:
        self._rows = rows
        self._randomness = randomness
        self._plan = plan
        self._batch_size = batch_size
        self._shard = shard
        self._device = device
        self._prefetched: tuple[int, DeviceBatch] | None = None

    def load(self, step: int) -> DeviceBatch:
        """The shard of the batch of this 0-based step. Raises DataError if a token id is outside the vocabulary."""
        if self._prefetched is not None and self._prefetched[0] == step:
            return self._prefetched[1]
        epoch, batch_index = divmod(step, self._plan.steps_per_epoch)
        order = self._randomness.training_rows(epoch, len(self._rows.inputs))
        start = batch_index * self._batch_size
        batch = self._rows.take(order[start : start + self._batch_size]).take(self._shard)
        return to_device(batch, self._device)

    def prefetch(self, step: int) -> None:
        """Start copying the batch of this step, on a GPU, if it is in the same epoch as the one before it.

        The first batch of an epoch is not prefetched: the book's policy draws its permutation after the samples and
        evaluations of the epoch before.
        """
        if self._device.type != "cpu" and step % self._plan.steps_per_epoch and step < self._plan.total_steps:
            self._prefetched = step, self.load(step)


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Move a batch's inputs and targets to the device: on the CPU without a copy, to CUDA without waiting."""
    inputs = torch.from_numpy(batch.inputs)
    targets = torch.from_numpy(batch.targets)
    if device.type != "cuda":  # on mps a copy from pageable memory may outlive the array
        return inputs.to(device), targets.to(device)
    return inputs.pin_memory().to(device, non_blocking=True), targets.pin_memory().to(device, non_blocking=True)
