"""Manifests: a corpus of several files, whose texts are concatenated.

A manifest is a UTF-8 text whose name ends in `.manifest`. Each line describes a document: its address, and the
SHA-256 and number of bytes of the file at that address, compressed or not, separated by whitespace. An address is an
https or http URL or a path, which may contain spaces and is relative to the manifest unless absolute. Names ending in
.gz or .zst are decompressed. Empty lines are skipped.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

from reprogpt.data.download import download, path_of, require_file
from reprogpt.data.download_cache import WRITABLE_CACHE, cached_file, corpora_folder, digest_of, file_errors, replaced
from reprogpt.data.normalize import Changes, normalize_text, read_document
from reprogpt.data.text import count_characters
from reprogpt.errors import FetchError
from reprogpt.urls import is_web, path_of_url, redact

SUFFIX = ".manifest"
MAX_MANIFEST_BYTES = 1 << 26
_SHOWN = 5  # problems of a manifest in one message
_HAS_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Document:
    """A line of a manifest. address: a full URL, or the absolute path of a file. name: for messages."""

    address: str
    sha256: str
    num_bytes: int
    name: str


def is_manifest(url: str) -> bool:
    """Whether the URL's path ends in .manifest."""
    return path_of_url(url).endswith(SUFFIX)


def parse_manifest(content: bytes, url: str) -> list[Document]:
    """The documents in the manifest at `url`. Raises FetchError with the first few lines that are malformed."""
    title = redact(path_of_url(url)).rsplit("/", 1)[-1]
    documents, problems = [], []
    try:
        lines = normalize_text(content.decode()).split("\n")
    except UnicodeDecodeError as error:
        raise FetchError(f"{title} is not a manifest: not UTF-8 at offset {error.start}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                documents.append(_parse_line(line, f"line {number} of {title}", url))
            except FetchError as error:
                problems.append(str(error))
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise FetchError(
            "\n".join([f"corpus_url={redact(url)} is not a valid manifest:", *problems[:_SHOWN], *more])
            + "\nA line is: address, SHA-256 (64 hexadecimal digits in lower case), number of bytes"
        )
    if not documents:
        raise FetchError(f"corpus_url={redact(url)} is an empty manifest: it has no document")
    return documents


def join_documents(
    documents: list[Document], to: Path, *, max_bytes: int, changes: Changes, advance: Callable[[int], object]
) -> tuple[list[int], int]:
    """Write the normalized texts of all documents to `to`, one after the other, with nothing between them.

    changes: counts what was changed. advance: called with the number of bytes of each piece received or unpacked.
    Returns the byte offsets between documents, and the total number of characters. Downloaded files are kept in the
    download cache as received.
    Raises UnreachableError if a host can't be reached; FetchError if a document can't be fetched or unpacked or does
    not match the manifest, or if the texts have more than max_bytes bytes; DataError if one is not UTF-8 or blank.
    """
    ends, num_characters, position = [], 0, 0
    with to.open("wb") as file:
        for document in documents:
            begin = position
            path = _fetch_document(document, max_bytes, advance)
            for piece in read_document(path, changes, kind=path_of_url(document.address).lower(), name=document.name):
                position += len(piece)
                if position > max_bytes:
                    raise FetchError(
                        f"{document.name}: with it, the corpus has more than max_corpus_bytes={max_bytes} once "
                        "unpacked; raise it to accept the text"
                    )
                file.write(piece)
                advance(len(piece))
            file.flush()
            num_characters += count_characters(to, begin, position, name=document.name)
            ends.append(position)
    return ends[:-1], num_characters


def _parse_line(line: str, name: str, url: str) -> Document:
    fields = line.strip().rsplit(maxsplit=2)
    if len(fields) != 3:
        raise FetchError(f"  {name}: {len(fields)} of 3 fields")
    address, sha256, num_bytes = fields
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise FetchError(f"  {name}: {sha256!r} is not a SHA-256")
    if not re.fullmatch("[0-9]{1,15}", num_bytes):
        raise FetchError(f"  {name}: {num_bytes!r} is not a number of bytes")
    address = _full_address(address, name, url)
    return Document(address, sha256, int(num_bytes), f"{name}: {redact(address)}")


def _full_address(address: str, name: str, url: str) -> str:
    """The full address. A manifest from the web can't refer to files on this machine."""
    if is_web(url):
        address = urljoin(url, address)
        if not is_web(address):
            raise FetchError(f"  {name}: {address} is not allowed: from the web, only https and http are followed")
    elif not is_web(address):
        if _HAS_SCHEME.match(address):
            raise FetchError(f"  {name}: {address} is not allowed; allowed: an https or http URL, or a path")
        address = str(path_of(url, name).parent / address)
    return address


def _fetch_document(document: Document, max_bytes: int, advance: Callable[[int], object]) -> Path:
    """A verified file with the document's bytes: a local file, or one in the download cache."""
    if not is_web(document.address):
        path = Path(document.address)
        require_file(path, name=document.name, max_bytes=max_bytes)
        _verify(document, path)
        return path
    if cached := cached_file(document.sha256):
        return cached
    cached = corpora_folder() / document.sha256
    with replaced(cached, WRITABLE_CACHE) as temporary:
        download(
            document.address, temporary, max_bytes=max_bytes, name=document.name, place="the manifest", advance=advance
        )
        _verify(document, temporary)
    return cached


def _verify(document: Document, path: Path) -> None:
    with file_errors(path, "make it readable"):
        num_bytes = path.stat().st_size
    sha256 = digest_of(path)
    if (num_bytes, sha256) != (document.num_bytes, document.sha256):
        raise FetchError(
            f"{document.name} is not the file that the manifest describes\n"
            f"  expected  {document.sha256} ({document.num_bytes} bytes)\n"
            f"  got       {sha256} ({num_bytes} bytes)\n"
            "Correct the manifest or the address. Nothing was kept"
        )
