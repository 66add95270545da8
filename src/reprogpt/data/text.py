"""Reads text files of any size in pieces, and checks that they are UTF-8."""

import codecs
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO

from reprogpt.data.charset import conversion_advice, why_not_utf8
from reprogpt.errors import DataError

PIECE_BYTES = 1 << 18  # read at a time


def read_pieces(
    path: Path,
    start: int = 0,
    end: int | None = None,
    *,
    name: str | None = None,
    advance: Callable[[int], object] = lambda num_bytes: None,
) -> Iterator[str]:
    """The text of a file's bytes from `start` to `end` (None: the file's end), in pieces; newlines are not changed.

    name: of the file in messages, its path if None. advance: called with the number of bytes of each piece read.
    Raises DataError if the file can't be read, and at the first byte that is NUL or not UTF-8, with its offset from
    start.
    """
    for content, piece in _decoded(read_bytes(path, start, end), name or str(path)):
        advance(len(content))
        if piece:
            yield piece


def require_utf8(contents: Iterable[bytes], *, name: str) -> Iterator[bytes]:
    """Yield the given pieces of one text unchanged; raises DataError as read_pieces does."""
    for content, _ in _decoded(chain(contents, [b""]), name):
        yield content


def _decoded(contents: Iterable[bytes], name: str) -> Iterator[tuple[bytes, str]]:
    """Yield each piece of a text's bytes (the last one is b"") with the characters that end in it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    first = b""
    for content in contents:
        if not offset:
            first = content
            reason = why_not_utf8(content)
            if reason:
                raise DataError(f"{name} {reason}")
        held = len(decoder.getstate()[0])  # of an incomplete character
        try:
            piece = decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            place = offset - held + error.start
            if not content:
                raise DataError(
                    f"{name} ends inside a character, at byte {place}: it is truncated; get the whole file"
                ) from None
            raise DataError(
                f"{name} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {place}; "
                f"{conversion_advice(first if error.start < len(first) else error.object)}"
            ) from None
        nul = content.find(0)
        if nul >= 0:
            raise DataError(
                f"{name} has a NUL byte at offset {offset + nul}, which no text has: it is damaged, as by a full disk; "
                "get a whole copy, or drop such bytes:\ntr -d '\\000' < FILE > FILE.clean.txt"
            )
        offset += len(content)
        yield content, piece


def count_characters(path: Path, start: int = 0, end: int | None = None, *, name: str | None = None) -> int:
    """Number of Unicode code points. Raises DataError as read_pieces does, and if all are whitespace."""
    num_characters, is_blank = 0, True
    for piece in read_pieces(path, start, end, name=name):
        num_characters += len(piece)
        is_blank = is_blank and piece.isspace()
    if is_blank:
        num_bytes = (path.stat().st_size if end is None else end) - start
        rest = ", all whitespace" if num_characters else ""
        raise DataError(f"{name or path} is empty: {num_bytes} bytes{rest}; provide a text")
    return num_characters


def read_bytes(path: Path, start: int, end: int | None) -> Iterator[bytes]:
    """The file's bytes from start to end, at most PIECE_BYTES at a time, then b""."""
    with _open(path) as file:
        if start:
            file.seek(start)
        left = None if end is None else end - start
        while content := file.read(PIECE_BYTES if left is None else min(PIECE_BYTES, left)):
            yield content
            left = None if left is None else left - len(content)
        yield b""


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}; `dvc repro` writes it") from None
