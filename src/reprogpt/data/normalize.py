"""Normalizes texts as Python's text mode does: line ends become LF, and a byte order mark at the start is dropped.

Otherwise the same book, saved on Windows, would give other tokens. A text with neither keeps its bytes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reprogpt.data.decompress import decompress
from reprogpt.data.text import read_bytes, require_utf8

MARK = b"\xef\xbb\xbf"
END_OF_TEXT = b"<|endoftext|>"
_PIECE_BYTES = 1 << 20


@dataclass
class Changes:
    """What normalization changed: line ends that were CRLF or CR, and byte order marks at the start of a document."""

    line_ends: int = 0
    byte_order_marks: int = 0

    def record(self) -> dict[str, int]:
        """The keys for source.json; none if nothing was changed."""
        counts = {"line_ends_normalized": self.line_ends, "byte_order_marks_dropped": self.byte_order_marks}
        return {key: count for key, count in counts.items() if count}


def normalize(pieces: Iterable[bytes], changes: Changes) -> Iterator[bytes]:
    """Normalize the bytes of one document, given in pieces of any size; `changes` counts what was changed."""
    held = b""  # perhaps the start of a mark, or a CR whose LF is still to come
    is_start = True
    for piece in pieces:
        content = held + piece
        held = b""
        if is_start:
            if len(content) < len(MARK) and MARK.startswith(content):
                held = content
                continue
            if content.startswith(MARK):
                changes.byte_order_marks += 1
                content = content[len(MARK) :]
            is_start = False
        if content.endswith(b"\r"):
            held = b"\r"
            content = content[:-1]
        yield _to_lf(content, changes)
    yield _to_lf(held, changes)


def normalize_text(text: str) -> str:
    """Normalize a text in memory."""
    return b"".join(normalize([text.encode()], Changes())).decode()


def read_document(path: Path, changes: Changes, *, kind: str, name: str) -> Iterator[bytes]:
    """The text of the file at `path`, unpacked and normalized, in pieces.

    kind: the name of the file in its own place. name: for messages.
    Raises FetchError if it can't be unpacked, DataError if it is not UTF-8, with the offset in the unpacked file.
    """
    return normalize(require_utf8(decompress(path, kind=kind, name=name), name=name), changes)


def is_normal(path: Path) -> bool:
    """Whether normalize would leave the file's bytes as they are."""
    with path.open("rb") as file:
        piece = file.read(_PIECE_BYTES)
        if piece.startswith(MARK):
            return False
        while piece:
            if b"\r" in piece:
                return False
            piece = file.read(_PIECE_BYTES)
    return True


def count_end_of_text(path: Path, start: int = 0, end: int | None = None) -> int:
    """How often a file contains the text <|endoftext|> in its bytes from start to end (None: to the last)."""
    count, before = 0, b""
    for piece in read_bytes(path, start, end):
        content = before + piece
        count += content.count(END_OF_TEXT)
        before = content[-len(END_OF_TEXT) + 1 :]
    return count


def _to_lf(content: bytes, changes: Changes) -> bytes:
    if b"\r" not in content:
        return content
    content = content.replace(b"\r\n", b"\r")
    changes.line_ends += content.count(b"\r")
    return content.replace(b"\r", b"\n")
