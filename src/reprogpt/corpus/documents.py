"""Where the documents of a corpus end: an end-of-text token belongs between two of them.

Their texts stand in one file with nothing in between, so no text can be mistaken for the sign of an end. What is kept
beside it are the offsets at which one document ends and the next begins, in bytes, ascending; [] for a single text.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from reprogpt.errors import DataError
from reprogpt.files import read_json


def cut_ends(ends: Sequence[int], cut: int) -> tuple[list[int], list[int]]:
    """The ends within both parts of a text that is cut at byte `cut`. A document's end at the cut is in neither."""
    return [end for end in ends if end < cut], [end - cut for end in ends if end > cut]


def spans(ends: Sequence[int]) -> Iterator[tuple[int, int | None]]:
    """(first byte, end) of each document of a text; None for the text's own end."""
    return zip([0, *ends], [*ends, None], strict=True)


def read_ends(path: Path, key: str, text: Path) -> list[int]:
    """The ends of documents in `text` that a JSON file of ours lists under `key`.

    Raises DataError if they or the text are not there, or don't fit each other.
    """
    remedy = "`dvc repro` makes both again"
    if not text.exists():
        raise DataError(f"{text} is missing; {remedy}")
    ends = read_json(path, needs=key, remedy=remedy)[key]
    if ends and any(end <= start for start, end in pairwise([0, *ends, text.stat().st_size])):
        raise DataError(f"{path} does not fit {text}: its documents' ends are not within its bytes; {remedy}")
    return list(ends)
