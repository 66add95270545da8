"""Document boundaries of a corpus: an end-of-text token goes between two documents.

The texts are concatenated in one file without separators, so no text can be mistaken for one. The boundaries are kept
beside it as ascending byte offsets at which one document ends and the next begins; [] for a single text.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from reprogpt.errors import DataError
from reprogpt.files import read_json


def cut_ends(ends: Sequence[int], cut: int) -> tuple[list[int], list[int]]:
    """The boundaries within both parts of a text split at byte `cut`. One exactly at the cut is in neither."""
    return [end for end in ends if end < cut], [end - cut for end in ends if end > cut]


def spans(ends: Sequence[int]) -> Iterator[tuple[int, int | None]]:
    """(first byte, end) of each document; the last end is None."""
    return zip([0, *ends], [*ends, None], strict=True)


def read_ends(path: Path, key: str, text: Path) -> list[int]:
    """Read the document boundaries of `text` from the key `key` of a JSON file.

    Raises DataError if a file is missing, or they don't fit each other.
    """
    remedy = "`dvc repro` makes both again"
    if not text.exists():
        raise DataError(f"{text} is missing; {remedy}")
    ends = read_json(path, needs=key, remedy=remedy)[key]
    if ends and any(end <= start for start, end in pairwise([0, *ends, text.stat().st_size])):
        raise DataError(f"{path} does not fit {text}: its documents' ends are not within its bytes; {remedy}")
    return list(ends)
