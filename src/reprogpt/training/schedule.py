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
    decay_start: int | None = None,
) -> float:
    """Learning rate of one optimizer step: linear rise, constant until decay_start, then the fall that lr_decay names.

    step: 0-based, 0 <= step < total_steps.
    warmup_steps: steps spent rising, 0 <= warmup_steps < total_steps;
        0 starts at peak_lr (the book divides by zero there).
    lr_decay: of p, the share of the fall that is past, from 0 at decay_start to 1 at total_steps, the rate above
        min_lr is a share of peak_lr - min_lr: cosine (1 + cos(pi p)) / 2, linear 1 - p, wsd 1 - sqrt(p). none: 1.
    decay_start: first step of the fall, warmup_steps <= decay_start <= total_steps, as decay_start() gives it;
        None: warmup_steps.
    Rates are plain multipliers; initial_lr and min_lr lie in [0, peak_lr].

    Reaches peak_lr at step == warmup_steps. The last step stays slightly above min_lr, as in the
    book. The order of operations is the book's, so that the bits are too.
    Raises ScheduleError, naming the value and its bound.
    Sources: Raschka, "Build a Large Language Model (From Scratch)", appendix D, for cosine and none; Hägele et al.,
    "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations" (2024), for wsd.
    """
    start = warmup_steps if decay_start is None else decay_start
    if not 0 <= warmup_steps < total_steps:
        raise ScheduleError(f"warmup_steps={warmup_steps} must be at least 0 and below total_steps={total_steps}")
    if not 0 <= step < total_steps:
        raise ScheduleError(f"step={step} must be at least 0 and below total_steps={total_steps}")
    if not (0 <= initial_lr <= peak_lr and 0 <= min_lr <= peak_lr):
        raise ScheduleError(f"initial_lr={initial_lr} and min_lr={min_lr} must lie between 0 and peak_lr={peak_lr}")
    if not warmup_steps <= start <= total_steps:
        raise ScheduleError(
            f"decay_start={start} must be at least warmup_steps={warmup_steps} and at most total_steps={total_steps}"
        )
    if step < warmup_steps:
        return initial_lr + step * ((peak_lr - initial_lr) / warmup_steps)
    if lr_decay == "none" or step < start:
        return peak_lr
    progress = (step - start) / (total_steps - start)
    if lr_decay == "linear":
        return min_lr + (peak_lr - min_lr) * (1 - progress)
    if lr_decay == "wsd":
        return min_lr + (peak_lr - min_lr) * (1 - math.sqrt(progress))
    return min_lr + (peak_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def decay_start(plan: Plan, *, lr_decay: str, decay_ratio: float) -> int:
    """0-based step at which the rate begins to fall; total_steps if it never does.

    wsd falls in the last int(decay_ratio * total_steps) steps, at least one and none of warmup's. The others fall
    from the end of warmup on.
    """
    if lr_decay == "none":
        return plan.total_steps
    if lr_decay != "wsd":
        return plan.warmup_steps
    num_falling = max(1, int(decay_ratio * plan.total_steps))
    return max(plan.warmup_steps, plan.total_steps - num_falling)


def first_clipped_step(plan: Plan, *, max_norm: float | None, clip_from: str, orig_book_version: bool) -> int | None:
    """0-based step from which on gradients are clipped; None: never."""
    if max_norm is None:
        return None
    if clip_from == "start":
        return 0
    return plan.warmup_steps + int(orig_book_version)
