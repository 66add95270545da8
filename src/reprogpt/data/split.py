"""Splits the corpus into a training and a validation part."""

from pathlib import Path

from reprogpt.data.text import count_characters, read_bytes, read_pieces
from reprogpt.errors import DataError
from reprogpt.files import atomic_path


def cut_position(num_characters: int, train_ratio: float) -> int:
    """Index of the first character of the validation part: int(train_ratio * num_characters).

    train_ratio: 0 to 1. Raises DataError if a part would be empty.
    """
    cut = int(train_ratio * num_characters)
    if not 0 < cut < num_characters:
        raise DataError(
            f"train_ratio={train_ratio} cuts {num_characters} characters into {cut} and {num_characters - cut}; "
            "neither part may be empty: change train_ratio, or use a longer text"
        )
    return cut


def split_file(raw: Path, train: Path, val: Path, *, train_ratio: float) -> int:
    """Write the training and the validation part of `raw`, cut at cut_position; returns the byte offset of the cut.

    Every byte of raw is in one of them. Raises DataError if raw is unreadable, blank or not UTF-8, or a part is empty.
    """
    cut = _byte_offset(raw, cut_position(count_characters(raw), train_ratio))
    for path, start, end in ((train, 0, cut), (val, cut, None)):
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            for content in read_bytes(raw, start, end):
                file.write(content)
    return cut


def _byte_offset(path: Path, character: int) -> int:
    """Number of bytes of the file's first `character` characters."""
    num_bytes = 0
    for piece in read_pieces(path):
        part = piece[:character]
        num_bytes += len(part.encode())
        character -= len(part)
        if not character:
            break
    return num_bytes
