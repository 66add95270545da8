"""Byte offsets at which one document of a corpus ends and the next begins.

Documents are concatenated in one file without separators, which a document's own text could contain. Their offsets
are stored in a JSON file beside it, ascending; [] for a single document. tokenize puts an end-of-text token at each.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from reprogpt.errors import DataError
from reprogpt.files import read_json


def split_offsets(offsets: Sequence[int], cut: int) -> tuple[list[int], list[int]]:
    """The offsets inside each part of a text that is split at byte `cut`. One exactly at the cut is in neither."""
    return [offset for offset in offsets if offset < cut], [offset - cut for offset in offsets if offset > cut]


def document_spans(offsets: Sequence[int]) -> Iterator[tuple[int, int | None]]:
    """(start, stop) of each document in bytes; the last stop is None."""
    return zip([0, *offsets], [*offsets, None], strict=True)


def read_offsets(path: Path, key: str, text: Path) -> list[int]:
    """Read the document offsets of `text` from the key `key` of a JSON file.

    Raises DataError if a file is missing, or the offsets do not fit the text.
    """
    remedy = "`dvc repro` writes both again"
    if not text.exists():
        raise DataError(f"{text} is missing; {remedy}")
    offsets = read_json(path, needs=key, remedy=remedy)[key]
    if offsets and any(stop <= start for start, stop in pairwise([0, *offsets, text.stat().st_size])):
        raise DataError(f"{path} does not fit {text}: its document offsets are not inside the text; {remedy}")
    return list(offsets)
