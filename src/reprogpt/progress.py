"""Progress of a running stage: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from reprogpt.step_record import StepRecord

LINE_INTERVAL = 10.0  # seconds between lines without a terminal, if no evaluation prints one


@contextmanager
def byte_bar(name: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """On a terminal, show a bar of bytes while the block runs.

    total: number of bytes, None if unknown. The block calls the yielded function with each number of bytes processed.
    """
    with tqdm(
        desc=name,
        total=total,
        unit="B",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        leave=False,
    ) as bar:
        yield bar.update


class TrainingProgress:
    """A bar with step, loss, lr, tokens per second and time left; a line per evaluation and sample.

    tokens_per_second: mean since this process's first step; None until its second.
    """

    def __init__(self, total_steps: int) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, unit="step", disable=not self._terminal, dynamic_ncols=True, leave=False)
        self._total_steps = total_steps
        self._started = time.monotonic()
        self._last_line = self._started
        self._first: StepRecord | None = None
        self.tokens_per_second: float | None = None

    def resume(self, step: int) -> None:
        """Start at this 0-based step instead of step 0."""
        if step == 0:
            return
        self._bar.initial = step
        self._bar.n = step
        rest = "" if step < self._total_steps else ": training is complete"
        self.say(f"resumed from the checkpoint at step {step} of {self._total_steps}{rest}")

    def step(self, record: StepRecord, *, is_latest: bool = True) -> None:
        """Show a step: always on the bar, as a line if it was evaluated.

        is_latest: whether the step has just finished. Others arrive late and tell nothing about speed and time left.
        """
        if is_latest:
            self._measure(record)
        rate = f"{self.tokens_per_second:.0f} tok/s" if self.tokens_per_second else "… tok/s"
        metrics = f"loss {record.loss:.3f}, lr {record.lr:.2e}, {rate}"
        self._bar.set_postfix_str(metrics, refresh=False)
        self._bar.update()
        status = f"step {record.step + 1}/{self._total_steps}, {metrics}, {self._time_left(record)} left"
        if record.val_loss is not None:
            line = (
                f"Ep {record.epoch + 1} (Iter {record.step:06d}): "
                f"Train loss {record.train_loss:.3f}, Val loss {record.val_loss:.3f}"
            )
            self.say(line if self._terminal else f"{line} | {status}")
        elif is_latest and not self._terminal and time.monotonic() - self._last_line > LINE_INTERVAL:
            self.say(status)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._last_line = time.monotonic()
        self._bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def _measure(self, record: StepRecord) -> None:
        # From the end of the first step, which includes warming up.
        if self._first is None:
            self._first = record
            self._started = time.monotonic()
            return
        tokens = record.tokens_seen - self._first.tokens_seen
        self.tokens_per_second = tokens / max(time.monotonic() - self._started, 1e-9)

    def _time_left(self, record: StepRecord) -> str:
        if self._first is None or record.step == self._first.step:
            return "…"
        seconds_per_step = (time.monotonic() - self._started) / (record.step - self._first.step)
        return tqdm.format_interval(seconds_per_step * (self._total_steps - record.step - 1))
