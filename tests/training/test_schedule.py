"""How many steps, and the learning rate of each."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from transformers.optimization import get_wsd_schedule

from reprogpt.errors import DataError, ScheduleError
from reprogpt.params.train import TrainParams
from reprogpt.training.schedule import Plan, learning_rate_at, plan_training
from tests.tiny import PARAMS

# 3 steps of warmup from 1 to 10, then 4 of cosine fall towards 2
SHORT = Plan(steps_per_epoch=7, total_steps=7, warmup_steps=3, decay_start=3, first_clipped_step=3)
RATES: dict[str, Any] = {"initial_lr": 1, "peak_lr": 10, "min_lr": 2}


def plan_of(num_rows: int, **changes: Any) -> Plan:
    return plan_training(num_rows, TrainParams(**PARAMS | changes))


@pytest.mark.parametrize(("step", "lr"), [(0, 1.0), (1, 4.0), (2, 7.0), (3, 10.0), (5, 6.0), (6, 6 - 4 / math.sqrt(2))])
def test_rate_rises_linearly_then_falls_on_a_cosine(step: int, lr: float) -> None:
    assert learning_rate_at(step, SHORT, **RATES) == pytest.approx(lr)


@pytest.mark.parametrize(("step", "lr"), [(0, 1.0), (2, 7.0), (3, 10.0), (4, 10.0), (6, 10.0)])
def test_rate_stays_at_its_peak_without_decay(step: int, lr: float) -> None:
    assert learning_rate_at(step, SHORT, **RATES, lr_decay="none") == pytest.approx(lr)


@pytest.mark.parametrize(("step", "lr"), [(2, 7.0), (3, 10.0), (4, 8.0), (5, 6.0), (6, 4.0)])
def test_rate_falls_on_a_line(step: int, lr: float) -> None:
    assert learning_rate_at(step, SHORT, **RATES, lr_decay="linear") == pytest.approx(lr)


@pytest.mark.parametrize(("step", "lr"), [(0, 1.0), (3, 10.0), (5, 10.0), (6, 10.0), (7, 6.0), (8, 10 - 8 / 2**0.5)])
def test_rate_is_stable_until_the_decay_of_wsd_and_falls_by_one_minus_a_root(step: int, lr: float) -> None:
    longer = replace(SHORT, total_steps=10, decay_start=6)
    assert learning_rate_at(step, longer, **RATES, lr_decay="wsd") == pytest.approx(lr)


def their_scheduler(lr_decay: str) -> LRScheduler:
    """20 steps from 0.001 to 0.01, then down to 0.001 by step 100, for wsd in the last 30 steps."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    if lr_decay == "wsd":
        found: LRScheduler = get_wsd_schedule(
            optimizer,
            num_warmup_steps=20,
            num_decay_steps=30,
            num_training_steps=100,
            decay_type="1-sqrt",
            min_lr_ratio=0.1,
        )
        return found
    warmup = LinearLR(optimizer, start_factor=0.1, total_iters=20)
    if lr_decay == "cosine":
        fall: LRScheduler = CosineAnnealingLR(optimizer, T_max=80, eta_min=0.001)
    else:
        end_factor = 0.1 if lr_decay == "linear" else 1.0
        fall = LinearLR(optimizer, start_factor=1.0, end_factor=end_factor, total_iters=80)
    return SequentialLR(optimizer, [warmup, fall], milestones=[20])


def rates_of(scheduler: LRScheduler, num_steps: int) -> list[float]:
    """The learning rates of a scheduler of torch's."""
    rates = []
    for _ in range(num_steps):
        rates.append(float(scheduler.get_last_lr()[0]))
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("lr_decay", ["cosine", "linear", "none", "wsd"])
def test_rates_are_those_of_torchs_and_transformers_schedulers(lr_decay: str) -> None:
    plan = plan_of(20, n_epochs=10, warmup_ratio=0.2, lr_decay=lr_decay, decay_ratio=0.3)
    theirs = their_scheduler(lr_decay)
    ours = [
        learning_rate_at(step, plan, initial_lr=0.001, peak_lr=0.01, min_lr=0.001, lr_decay=lr_decay)
        for step in range(100)
    ]
    assert ours == pytest.approx(rates_of(theirs, 100), rel=1e-9)


def test_the_decay_of_wsd_takes_its_share_of_all_steps_and_at_least_one() -> None:
    def start(lr_decay: str, decay_ratio: float) -> int:
        """Of 11 steps, the first 3 of them warmup."""
        return plan_of(22, n_epochs=1, warmup_ratio=0.3, lr_decay=lr_decay, decay_ratio=decay_ratio).decay_start

    assert [start("wsd", ratio) for ratio in (0.01, 0.2, 0.5, 0.7)] == [10, 9, 6, 4]
    assert start("linear", 0.2) == 3
    assert start("none", 0.2) == 11


@pytest.mark.parametrize(
    ("max_norm", "clip_from", "orig_book_version", "first"),
    [(1.0, "warmup", False, 3), (1.0, "warmup", True, 4), (1.0, "start", False, 0), (None, "start", False, None)],
)
def test_the_first_clipped_step(max_norm: float | None, clip_from: str, orig_book_version: bool, first: Any) -> None:
    changes = {"max_norm": max_norm, "clip_from": clip_from, "orig_book_version": orig_book_version}
    assert plan_of(20, n_epochs=1, warmup_ratio=0.3, **changes).first_clipped_step == first


def test_last_step_stays_above_the_minimum() -> None:
    assert learning_rate_at(6, SHORT, **RATES) > 2


@pytest.mark.parametrize("lr_decay", ["cosine", "none"])
def test_without_warmup_the_first_step_has_the_peak_rate(lr_decay: str) -> None:
    assert learning_rate_at(0, replace(SHORT, warmup_steps=0, decay_start=0), **RATES, lr_decay=lr_decay) == 10


def test_warmup_may_take_all_steps_but_one() -> None:
    rates = [learning_rate_at(step, replace(SHORT, total_steps=4), **RATES) for step in range(4)]
    assert rates == [1, 4, 7, 10]


@pytest.mark.parametrize(
    ("initial_lr", "peak_lr", "min_lr", "lr_decay"),
    [(0.0001, 0.01, 0.0, "none"), (0.0001, 0.01, 0.00001, "cosine"), (0.00001, 0.001, 0.00001, "cosine")],
)
def test_the_books_three_schedules_to_the_bit(initial_lr: float, peak_lr: float, min_lr: float, lr_decay: str) -> None:
    plan = plan_of(18, n_epochs=15, warmup_ratio=0.2, lr_decay=lr_decay)
    total_steps, warmup_steps = 135, 27
    increment = (peak_lr - initial_lr) / warmup_steps
    for step in range(total_steps):
        if step < warmup_steps:
            lr = initial_lr + step * increment
        elif lr_decay == "none":
            lr = peak_lr
        else:
            progress = (step - warmup_steps) / (total_steps - warmup_steps)
            lr = min_lr + (peak_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
        rates = {"initial_lr": initial_lr, "peak_lr": peak_lr, "min_lr": min_lr}
        assert learning_rate_at(step, plan, **rates, lr_decay=lr_decay) == lr, f"step {step}"


@pytest.mark.parametrize(
    ("step", "changes", "message"),
    [
        (-1, {}, "step=-1 must be at least 0 and below total_steps=7"),
        (7, {}, "step=7 must be at least 0 and below total_steps=7"),
        (0, {"warmup_steps": -1}, "warmup_steps=-1 must be at least 0 and below total_steps=7"),
        (0, {"warmup_steps": 7}, "warmup_steps=7 must be at least 0 and below total_steps=7"),
        (0, {"initial_lr": -1}, "initial_lr=-1 and min_lr=2 must lie between 0 and peak_lr=10"),
        (0, {"initial_lr": 11}, "initial_lr=11 and min_lr=2 must lie between 0 and peak_lr=10"),
        (0, {"min_lr": -1}, "initial_lr=1 and min_lr=-1 must lie between 0 and peak_lr=10"),
        (0, {"decay_start": 2}, "decay_start=2 must be at least warmup_steps=3 and at most total_steps=7"),
        (0, {"decay_start": 8}, "decay_start=8 must be at least warmup_steps=3 and at most total_steps=7"),
        (0, {"min_lr": 11}, "initial_lr=1 and min_lr=11 must lie between 0 and peak_lr=10"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_bound(step: int, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScheduleError, match=f"^{message}$"):
        steps = {key: value for key, value in changes.items() if key not in RATES}
        rates = RATES | {key: value for key, value in changes.items() if key in RATES}
        learning_rate_at(step, replace(SHORT, **steps), **rates)


def test_rates_may_lie_on_their_bounds() -> None:
    assert learning_rate_at(0, SHORT, **RATES | {"initial_lr": 10, "min_lr": 10}) == 10
    assert learning_rate_at(0, SHORT, **RATES | {"initial_lr": 0, "min_lr": 0}) == 0


def test_a_short_last_batch_is_no_step_and_warmup_rounds_down() -> None:
    assert plan_of(7, n_epochs=5) == Plan(3, 15, 3, decay_start=3, first_clipped_step=3)
    assert plan_of(7, n_epochs=3) == Plan(3, 9, 1, decay_start=1, first_clipped_step=1)
    assert plan_of(2, n_epochs=1) == Plan(1, 1, 0, decay_start=0, first_clipped_step=0)


def test_the_books_plan() -> None:
    assert plan_of(18, n_epochs=15) == Plan(9, 135, 27, decay_start=27, first_clipped_step=27)


def test_too_few_rows_for_one_batch_are_refused() -> None:
    with pytest.raises(DataError, match=r"gives 3 rows, fewer than batch_size=4.*smaller batch_size"):
        plan_of(3, batch_size=4)
