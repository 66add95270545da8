"""Values as an MLflow store has them: parameters are texts, and anyone may have written them."""

import math
from types import NoneType
from typing import get_args

from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.sampling_limits import MAX_SEED
from reprogpt.params.train import TrainParams

Level = tuple[str, ...]  # the values of the keys in question, in canonical form

_FIELDS = TrainParams.model_fields | EvaluateParams.model_fields
_LARGEST_FLOAT = 1.7976931348623157e308  # MLflow's tables hold this for inf


def canonical(key: str, value: object) -> str:
    """A value in the one form that the type of its parameter has: 5e-4 and 0.0005, TRUE and true, None and null.

    The value of a text, and of a key that is no parameter, stays as it is; "" is '""'.
    """
    annotation = _FIELDS[key].annotation if key in _FIELDS else str
    types = get_args(annotation) or (annotation,)
    text = str(value)
    if NoneType in types and text.lower() in ("none", "null", "~", ""):
        return "null"
    if bool in types and text.lower() in ("true", "false"):
        return text.lower()
    number = as_number(text) if int in types or float in types else None
    if number is None:
        return text or '""'
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def as_number(text: str) -> float | None:
    """The finite number that a text writes; None if it writes none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def as_seed(value: object) -> int | None:
    """The seed that a value writes, in digits only; None if it writes none, or one above MAX_SEED."""
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_SEED))):
        return None
    seed = int(text)
    return seed if seed <= MAX_SEED else None


def finite_metric(value: float | None) -> float | None:
    """A metric's value; None if there is none, or it is NaN or infinite, as MLflow returns them."""
    if value is None or not abs(value) < _LARGEST_FLOAT:
        return None
    return value


def level_order(level: Level) -> tuple[tuple[bool, float, str], ...]:
    """Key to sort levels by: numbers in ascending order, then texts."""
    numbers = [as_number(value) for value in level]
    return tuple((number is None, number or 0.0, value) for number, value in zip(numbers, level, strict=True))
