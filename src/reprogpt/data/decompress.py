"""Reads plain, gzip (.gz) and Zstandard (.zst) files. The only file that imports zstandard."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from reprogpt.errors import FetchError

PIECE_BYTES = 1 << 20  # read at a time from a plain file, or from gzip after decompression
# Compressed bytes read at a time. 4 bytes can decompress to a block of 128 KiB, so these give at most 32 MiB.
COMPRESSED_BYTES = 1 << 10


def is_compressed(kind: str) -> bool:
    """Whether decompress would change what is in a file of this name."""
    return kind.endswith((".gz", ".zst"))


def decompress(path: Path, *, kind: str, name: str) -> Iterator[bytes]:
    """The decompressed bytes of `path`, in pieces of at most 32 MiB whatever the compression ratio.

    kind: the file's original name, whose suffix gives the compression. name: of the file, for messages.
    Raises FetchError if it is truncated or not compressed that way.
    """
    if kind.endswith(".gz"):
        return _gzip(path, name)
    return _zstandard(path, name) if kind.endswith(".zst") else _plain(path)


def _plain(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _gzip(path: Path, name: str) -> Iterator[bytes]:
    with gzip.open(path) as file:
        while True:
            try:
                piece = file.read(PIECE_BYTES)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise FetchError(f"{name} can't be decompressed as gzip: {error}") from None
            if not piece:
                return
            yield piece


def _zstandard(path: Path, name: str) -> Iterator[bytes]:
    # Imported here: needed only for such files. Its stream reader would accept a truncated file.
    import zstandard

    with path.open("rb") as file:
        frame = zstandard.ZstdDecompressor().decompressobj()
        rest = b""
        has_input = False
        while packed := rest or file.read(COMPRESSED_BYTES):
            if frame.eof:  # a file may have several frames
                frame = zstandard.ZstdDecompressor().decompressobj()
            try:
                piece = frame.decompress(packed)
            except zstandard.ZstdError as error:
                raise FetchError(f"{name} can't be decompressed as Zstandard: {error}") from None
            rest = frame.unused_data if frame.eof else b""
            has_input = True
            if piece:
                yield piece
        if has_input and not frame.eof:
            raise FetchError(f"{name} can't be decompressed as Zstandard: it ends inside a frame")
