"""Bring the corpus from the nearest place that has it, verified."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from reprogpt.corpus.download import download, read_file, without_user
from reprogpt.corpus.text import decode_text
from reprogpt.errors import FetchError, UnreachableError
from reprogpt.files import cache_folder, file_digest, write_bytes_atomic

FRAME = "=" * 78


@dataclass(frozen=True)
class Source:
    """What the corpus is and where it belongs: to a URL, or to a file used in its place.

    url: the address asked for, without user and password; None for the fallback.
    path: the fallback as params.yaml names it, else None.
    sha256, bytes: of the file, as it came. characters: Unicode code points.
    how: the way it took this time, for the log only.
    """

    url: str | None
    path: str | None
    sha256: str
    bytes: int
    characters: int
    how: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        assert (self.url is None) != (self.path is None)

    def record(self) -> dict[str, str | int]:
        """What source.json holds: the same, whichever way a text came."""
        origin = {"url": self.url} if self.url is not None else {"path": self.path or ""}
        return {**origin, "sha256": self.sha256, "bytes": self.bytes, "characters": self.characters}


def obtain_corpus(
    raw: Path, *, corpus_url: str, corpus_sha256: str, offline_corpus: str, max_corpus_bytes: int
) -> Source:
    """Bring the corpus to `raw`, from the nearest place that has it, and say what it is.

    The places: `raw` itself, the download cache, corpus_url; where that can't be reached,
    offline_corpus with a warning. The first two serve only a text pinned by corpus_sha256; ""
    accepts any text, downloads each time, and warns.
    The text must be UTF-8, hold more than white space, and have at most max_corpus_bytes bytes,
    wherever it comes from.
    Raises FetchError or DataError; `raw` is then as it was.
    """
    url = without_user(corpus_url)
    if not corpus_sha256:
        _warn(
            f'corpus_sha256 is "": any text from {url} is accepted, and is read again when fetch runs\n'
            "(`dvc repro -f fetch`); to pin the text, set corpus_sha256 to its sha256 in source.json"
        )
    elif _digest(raw) == corpus_sha256:
        content = read_file(raw, name="the text kept from before", max_bytes=max_corpus_bytes)
        return _source(content, "kept", url=url)
    cached = corpora_folder() / corpus_sha256 if corpus_sha256 else None
    if cached is not None and _is_sound(cached):
        how, content = "download cache", read_file(cached, name="the download cache", max_bytes=max_corpus_bytes)
    else:
        try:
            how, content = "downloaded", download(corpus_url, max_bytes=max_corpus_bytes)
        except UnreachableError as error:
            return _fall_back(raw, offline_corpus, max_corpus_bytes, error)
    source = _source(content, how, url=url)
    if corpus_sha256 not in ("", source.sha256):
        raise _other_text(source, corpus_sha256)
    if how == "downloaded" and cached is not None:
        _store(cached, content, "set REPROGPT_CACHE to a folder that can be written to")
    _store(raw, content, "make room or set its permissions")
    return source


def corpora_folder() -> Path:
    """The download cache. Each file is named by the SHA-256 of its bytes, so that a person can put one there."""
    return cache_folder() / "corpora"


def _source(content: bytes, how: str, *, url: str | None = None, path: str | None = None) -> Source:
    text = decode_text(content, str(url or path))
    return Source(url, path, hashlib.sha256(content).hexdigest(), len(content), len(text), how)


def _other_text(source: Source, wanted: str) -> FetchError:
    return FetchError(
        f"corpus_url={source.url} is another text than expected\n"
        f"  expected  corpus_sha256={wanted}\n"
        f"  got       {source.sha256} ({source.bytes} bytes)\n"
        "If the new text is wanted, set corpus_sha256 to the second; if not, correct corpus_url. Nothing was kept"
    )


def _is_sound(cached: Path) -> bool:
    """Whether the cache has this file and its bytes have the digest that is its name; a spoilt one is removed."""
    found = _digest(cached)
    if found not in (None, cached.name):
        _warn(f"{cached} is removed from the download cache: its SHA-256 is {found}, not its name")
        with _file_errors(cached, "remove it"):
            cached.unlink()
    return found == cached.name


def _fall_back(raw: Path, offline_corpus: str, max_bytes: int, unreachable: UnreachableError) -> Source:
    if not offline_corpus:
        raise UnreachableError(
            f"{unreachable}\n"
            "Check the network and the proxy (HTTPS_PROXY);\n"
            f"or put the text into {corpora_folder()}, named by its SHA-256, which is corpus_sha256;\n"
            "or set offline_corpus to a text to use instead"
        ) from None
    try:
        content = read_file(Path(offline_corpus), name=f"offline_corpus={offline_corpus}", max_bytes=max_bytes)
    except FetchError as error:
        raise FetchError(
            f"{unreachable};\nnor is there a text to use instead: {error};\nset offline_corpus to one, or go online"
        ) from None
    source = _source(content, "fallback", path=offline_corpus)
    _store(raw, content, "make room or set its permissions")
    print(
        f"\n{FRAME}\nWARNING: ANOTHER TEXT IS USED. The corpus could not be reached.\n"
        f"  {unreachable}\n"
        f"  used instead: {offline_corpus}\n"
        "Results will differ from the published ones.\n"
        f"When online again, get the right text with:  dvc repro -f fetch\n"
        f"and then train on it with:                   dvc repro\n{FRAME}\n",
        file=sys.stderr,
    )
    return source


def _digest(path: Path) -> str | None:
    """SHA-256 of a file, None if there is none."""
    with _file_errors(path, "make it readable, or remove it"):
        return file_digest(path) if path.is_file() else None


def _store(path: Path, content: bytes, remedy: str) -> None:
    with _file_errors(path, remedy):
        write_bytes_atomic(path, content)


@contextmanager
def _file_errors(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FetchError(f"{path}: {error.strerror or error}; {remedy}") from None


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
