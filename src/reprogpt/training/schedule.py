"""How many steps a training takes, the learning rate of each, and from which one on gradients are clipped."""

import math
from dataclasses import dataclass

from reprogpt.errors import DataError, ScheduleError
from reprogpt.params.train import TrainParams


@dataclass(frozen=True)
class Plan:
    """The length of a training in optimizer steps, and the 0-based steps at which something changes.

    decay_start: the learning rate begins to fall; total_steps if it never does.
    first_clipped_step: gradients are clipped from here on; None: never.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    decay_start: int
    first_clipped_step: int | None

    @property
    def lengths(self) -> dict[str, int]:
        """steps_per_epoch, total_steps and warmup_steps."""
        return {key: getattr(self, key) for key in ("steps_per_epoch", "total_steps", "warmup_steps")}


def plan_training(num_rows: int, params: TrainParams) -> Plan:
    """Plan n_epochs over num_rows rows; a last short batch is dropped, as in the book.

    Raises DataError if the rows do not fill one batch.
    """
    steps_per_epoch = num_rows // params.batch_size
    if steps_per_epoch == 0:
        raise DataError(
            f"the training text gives {num_rows} rows, fewer than batch_size={params.batch_size}: not one step. "
            "Use a smaller batch_size, context_length or stride, or a longer corpus"
        )
    total_steps = steps_per_epoch * params.n_epochs
    warmup_steps = int(params.warmup_ratio * total_steps)
    return Plan(
        steps_per_epoch,
        total_steps,
        warmup_steps,
        decay_start=_decay_start(params, total_steps, warmup_steps),
        first_clipped_step=_first_clipped_step(params, warmup_steps),
    )


def learning_rate_at(
    step: int, plan: Plan, *, initial_lr: float, peak_lr: float, min_lr: float, lr_decay: str = "cosine"
) -> float:
    """Learning rate of one optimizer step: linear rise, constant until decay_start, then the fall that lr_decay names.

    step: 0-based, 0 <= step < total_steps.
    plan: 0 <= warmup_steps < total_steps, warmup_steps <= decay_start <= total_steps.
        With warmup_steps=0 the first step has peak_lr (the book divides by zero there).
    lr_decay: with p rising from 0 at decay_start to 1 at total_steps, the rate is min_lr plus this share of
        peak_lr - min_lr: cosine (1 + cos(pi p)) / 2, linear 1 - p, wsd 1 - sqrt(p); none: 1.
    Rates are plain multipliers; initial_lr and min_lr lie in [0, peak_lr].

    Reaches peak_lr at step == warmup_steps. The last step stays slightly above min_lr, as in the book. Operations
    are in the book's order, so that results equal its to the bit.
    Raises ScheduleError, naming the value and its bound.
    Sources: Raschka, "Build a Large Language Model (From Scratch)", appendix D, for cosine and none; Hägele et al.,
    "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations" (2024), for wsd.
    """
    warmup_steps, start, total_steps = plan.warmup_steps, plan.decay_start, plan.total_steps
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


def _decay_start(params: TrainParams, total_steps: int, warmup_steps: int) -> int:
    """wsd decays in the last int(decay_ratio * total_steps) steps: at least one, and none of warmup's."""
    if params.lr_decay == "none":
        return total_steps
    if params.lr_decay != "wsd":
        return warmup_steps
    num_falling = max(1, int(params.decay_ratio * total_steps))
    return max(warmup_steps, total_steps - num_falling)


def _first_clipped_step(params: TrainParams, warmup_steps: int) -> int | None:
    if params.max_norm is None:
        return None
    if params.clip_from == "start":
        return 0
    return warmup_steps + int(params.orig_book_version)
