"""How many steps a training takes, and the learning rate of each."""

import math
from dataclasses import dataclass

from reprogpt.errors import DataError, ScheduleError


@dataclass(frozen=True)
class Plan:
    """The length of a training in optimizer steps."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int


def plan_training(num_rows: int, *, batch_size: int, n_epochs: int, warmup_ratio: float) -> Plan:
    """Steps of n_epochs over num_rows rows; a last short batch is dropped, as in the book.

    Raises DataError if the rows do not fill one batch.
    """
    steps_per_epoch = num_rows // batch_size
    if steps_per_epoch == 0:
        raise DataError(
            f"the training text gives {num_rows} rows, fewer than batch_size={batch_size}: not one step. "
            "Use a smaller batch_size, context_length or stride, or a longer corpus"
        )
    total_steps = steps_per_epoch * n_epochs
    return Plan(steps_per_epoch, total_steps, warmup_steps=int(warmup_ratio * total_steps))


def learning_rate_at(
    step: int,
    *,
    initial_lr: float,
    peak_lr: float,
    min_lr: float,
    warmup_steps: int,
    total_steps: int,
    lr_decay: str = "cosine",
) -> float:
    """Learning rate of one optimizer step: linear rise, then cosine fall (or none: constant).

    step: 0-based, 0 <= step < total_steps.
    warmup_steps: steps spent rising, 0 <= warmup_steps < total_steps;
        0 starts at peak_lr (the book divides by zero there).
    Rates are plain multipliers; initial_lr and min_lr lie in [0, peak_lr].

    Reaches peak_lr at step == warmup_steps. The last step stays slightly above min_lr, as in the
    book. The order of operations is the book's, so that the bits are too.
    Raises ScheduleError, naming the value and its bound.
    Source: Raschka, "Build a Large Language Model (From Scratch)", appendix D.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ScheduleError(f"warmup_steps={warmup_steps} must be at least 0 and below total_steps={total_steps}")
    if not 0 <= step < total_steps:
        raise ScheduleError(f"step={step} must be at least 0 and below total_steps={total_steps}")
    if not (0 <= initial_lr <= peak_lr and 0 <= min_lr <= peak_lr):
        raise ScheduleError(f"initial_lr={initial_lr} and min_lr={min_lr} must lie between 0 and peak_lr={peak_lr}")
    if step < warmup_steps:
        return initial_lr + step * ((peak_lr - initial_lr) / warmup_steps)
    if lr_decay == "none":
        return peak_lr
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + (peak_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
