"""What a person sees while the model trains: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 10.0  # without a terminal and without evaluations: a sign of life this often


class Progress:
    """A bar with step, loss, lr, tokens per second and time left; lines of evaluations and samples."""

    def __init__(self, total_steps: int) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, unit="step", disable=not self._terminal, dynamic_ncols=True, leave=False)
        self._total_steps = total_steps
        self._started = self._last_line = time.monotonic()
        self._first: Mapping[str, Any] | None = None
        self.tokens_per_second: float | None = None

    def resume(self, step: int) -> None:
        """Show that the training goes on with this 0-based step; nothing where that is the first."""
        if step == 0:
            return
        self._bar.initial = self._bar.n = step
        rest = "" if step < self._total_steps else ": nothing is left to train"
        self.say(f"resumed at step {step} of {self._total_steps}{rest}")

    def step(self, record: Mapping[str, Any]) -> None:
        """Show a step, given by history.csv's columns: on the bar always, as a line where it was evaluated."""
        self._measure(record)
        rate = f"{self.tokens_per_second:.0f} tok/s" if self.tokens_per_second else "… tok/s"
        values = f"loss {record['loss']:.3f}, lr {record['lr']:.2e}, {rate}"
        self._bar.set_postfix_str(values, refresh=False)
        self._bar.update()
        now = time.monotonic()
        state = f"step {record['step'] + 1}/{self._total_steps}, {values}"
        if record["val_loss"] is not None:
            line = (
                f"Ep {record['epoch'] + 1} (Iter {record['step']:06d}): "
                f"Train loss {record['train_loss']:.3f}, Val loss {record['val_loss']:.3f}"
            )
            self.say(line if self._terminal else f"{line} | {state}, {self._time_left(record)} left")
        elif not self._terminal and now - self._last_line > LINE_SECONDS:
            self.say(f"{state}, {self._time_left(record)} left")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._last_line = time.monotonic()
        self._bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def _measure(self, record: Mapping[str, Any]) -> None:
        # Counted from the end of the first step on: it pays for warming up.
        if self._first is None:
            self._first, self._started = record, time.monotonic()
            return
        tokens = record["tokens_seen"] - self._first["tokens_seen"]
        self.tokens_per_second = tokens / max(time.monotonic() - self._started, 1e-9)

    def _time_left(self, record: Mapping[str, Any]) -> str:
        if self._first is None or record["step"] == self._first["step"]:
            return "…"
        seconds = (time.monotonic() - self._started) / (record["step"] - self._first["step"])
        return tqdm.format_interval(seconds * (self._total_steps - record["step"] - 1))
