"""Progress of a training, on a terminal and elsewhere."""

import io
import re
import sys
from typing import Any

import pytest

from reprogpt import progress
from reprogpt.progress import TrainingProgress
from reprogpt.step_record import StepRecord


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def record(step: int, **evaluated: Any) -> StepRecord:
    """Steps of 512 tokens, 9 an epoch."""
    return StepRecord(
        step=step,
        epoch=step // 9,
        tokens_seen=512 * (step + 1),
        lr=0.0005,
        loss=6.5,
        max_grad=0.5,
        max_grad_clipped=0.5,
        grad_norm=1.0,
        **evaluated,
    )


def test_without_a_terminal_an_evaluation_is_a_plain_line_with_rate_and_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    training_progress = TrainingProgress(100)
    for step in range(11):
        clock.now += 2  # the first step is not counted: it includes warming up
        evaluated = {"train_loss": 5.0, "val_loss": 7.25} if step == 10 else {}
        training_progress.step(record(step, **evaluated))
    training_progress.close()
    assert training_progress.tokens_per_second == 256
    *_, last = capsys.readouterr().out.splitlines()
    assert last == (
        "Ep 2 (Iter 000010): Train loss 5.000, Val loss 7.250 | step 11/100, loss 6.500, lr 5.00e-04, 256 tok/s, "
        "02:58 left"
    )


def test_without_a_terminal_and_without_evaluations_there_is_a_line_every_ten_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    training_progress = TrainingProgress(100)
    for step in range(30):
        clock.now += 1
        training_progress.step(record(step))
    lines = capsys.readouterr().out.splitlines()
    assert [re.match(r"step (\d+)/100, loss 6.500, .* left$", line)[1] for line in lines] == ["11", "22"]  # type: ignore[index]


def test_on_a_terminal_there_is_a_bar_and_the_books_line_above_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    training_progress = TrainingProgress(10)
    for step in range(2):
        clock.now += 2
        training_progress.step(record(step, **({"train_loss": 5.0, "val_loss": 7.25} if step else {})))
    training_progress._bar.refresh()
    bar = terminal.getvalue().split("\r")[-1]
    assert re.search(r"20%\|.*\| 2/10 \[.*, loss 6.500, lr 5.00e-04, 256 tok/s\]", bar), bar
    training_progress.close()
    assert capsys.readouterr().out == "Ep 1 (Iter 000001): Train loss 5.000, Val loss 7.250\n"


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (0, ""),
        (57, "resumed from the checkpoint at step 57 of 100\n"),
        (100, "resumed from the checkpoint at step 100 of 100: training is complete\n"),
    ],
)
def test_a_resumed_training_reports_its_step(step: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    TrainingProgress(100).resume(step)
    assert capsys.readouterr().out == line


def test_a_resumed_trainings_rate_counts_from_the_resumed_step(clock: Clock) -> None:
    training_progress = TrainingProgress(100)
    training_progress.resume(50)
    for step in range(50, 53):
        clock.now += 2
        training_progress.step(record(step))
    assert training_progress.tokens_per_second == 256


@pytest.mark.parametrize("first_step", [0, 48])
def test_the_rate_is_that_of_the_steps_not_of_their_arrival_in_groups_of_16(clock: Clock, first_step: int) -> None:
    """As on a GPU: a step of 512 tokens a second, whose records arrive every 16 seconds; after a resume, too."""
    training_progress = TrainingProgress(200)
    training_progress.resume(first_step)
    rates = []
    for start in range(first_step, first_step + 64, 16):
        clock.now += 16
        for step in range(start, start + 16):
            training_progress.step(record(step), is_latest=step == start + 15)
            rates.append(training_progress.tokens_per_second)
    assert rates == [None] * 31 + [512] * 33


def test_lines_between_evaluations_are_of_a_groups_latest_step(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    training_progress = TrainingProgress(100)
    for start in range(0, 48, 16):
        clock.now += 16
        for step in range(start, start + 16):
            training_progress.step(record(step), is_latest=step == start + 15)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 16/100", "step 32/100", "step 48/100"]
    assert lines[0].endswith(", … tok/s, … left")
    assert lines[1].endswith(", 512 tok/s, 01:08 left")
