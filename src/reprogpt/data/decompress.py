"""Reads plain, gzip (.gz) and Zstandard (.zst) files. The only file that imports zstandard."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from reprogpt.errors import FetchError

PIECE_BYTES = 1 << 20  # read of what is not packed, or come out of gzip, at a time
# 4 bytes can decompress to a block of 128 KiB: so at most 32 MiB come out of this many.
COMPRESSED_BYTES = 1 << 10


def is_compressed(kind: str) -> bool:
    """Whether decompress would change what is in a file of this name."""
    return kind.endswith((".gz", ".zst"))


def decompress(path: Path, *, kind: str, name: str) -> Iterator[bytes]:
    """The bytes in `path`, in pieces of at most 32 MiB, however small what they are packed in.

    kind: the name of the file in its own place, whose end says how it is packed.
    Raises FetchError, calling the file `name`, if it is cut or not packed in that way.
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
    # Imported here, not above: only who has such a file needs it. Its stream reader would take a cut file for whole.
    import zstandard

    with path.open("rb") as file:
        frame, rest = zstandard.ZstdDecompressor().decompressobj(), b""
        fed = False
        while packed := rest or file.read(COMPRESSED_BYTES):
            if frame.eof:  # a file may hold several
                frame = zstandard.ZstdDecompressor().decompressobj()
            try:
                piece = frame.decompress(packed)
            except zstandard.ZstdError as error:
                raise FetchError(f"{name} can't be decompressed as Zstandard: {error}") from None
            rest, fed = frame.unused_data if frame.eof else b"", True
            if piece:
                yield piece
        if fed and not frame.eof:
            raise FetchError(f"{name} can't be decompressed as Zstandard: it ends within a frame")
