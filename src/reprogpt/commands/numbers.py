"""Numbers on the command line, with their bounds, and names. It imports nothing heavy."""

import argparse
import math
import re
from collections.abc import Callable

from reprogpt.sampling import LEAST_TEMPERATURE, MOST_TEMPERATURE, is_temperature


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
    if not is_temperature(value):
        allowed = f"0 or a number from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}"
        raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
    return value


def model_name(text: str) -> str:
    """A name that a models:/ URI can hold."""
    if not re.fullmatch(r"[\w.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} has more than letters, digits, dots, dashes and underscores")
    return text
