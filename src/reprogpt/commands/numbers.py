"""Numbers on the command line, with their bounds. It imports nothing heavy."""

import argparse
import math
from collections.abc import Callable

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.001, 1000.0  # but for 0


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """A parser of whole numbers from least to most, None being no bound."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text} is not a whole number {bounds}")
        return value

    return parse


def temperature(text: str) -> float:
    """0, or a number from LEAST_TEMPERATURE to MOST_TEMPERATURE."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # Beyond these bounds, logits divided by it leave the range of float32.
    if value != 0 and not LEAST_TEMPERATURE <= value <= MOST_TEMPERATURE:
        allowed = f"0 or a number from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}"
        raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
    return value
