"""Fetches the corpus: from the workspace, the download cache or its URL, verified by SHA-256."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from reprogpt.data.decompress import is_compressed
from reprogpt.data.download import copy_file, download, require_file
from reprogpt.data.download_cache import (
    WRITABLE_CACHE,
    cached_file,
    corpora_folder,
    digest_of,
    replaced,
)
from reprogpt.data.manifest import MAX_MANIFEST_BYTES, is_manifest, join_documents, parse_manifest
from reprogpt.data.normalize import Changes, count_end_of_text, is_normal, read_document
from reprogpt.data.text import count_characters
from reprogpt.errors import FetchError, UnreachableError
from reprogpt.files import file_digest
from reprogpt.messages import print_message
from reprogpt.paths import BUNDLED_TEXT
from reprogpt.urls import path_of_url, redact, with_secret_query

FRAME = "=" * 78
DEFAULT_TEXT_SHA256 = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"  # of "The Verdict"
WRITABLE_TEXT = "make room or set its permissions"


@dataclass(frozen=True)
class Source:
    """The corpus and its origin: a URL, or a fallback file.

    url: corpus_url without user and password; None for the fallback.
    path: the fallback as params.yaml names it, otherwise None.
    sha256: of the file as received, a text or a manifest.
    bytes, characters (Unicode code points): of the text, unpacked and normalized.
    changes: what normalization changed.
    documents: number of documents in a manifest; None for a single text.
    ends: byte offsets at which one document ends and the next begins.
    how: how it was obtained this time, for the log only.
    names: of a manifest's documents, for messages.
    """

    url: str | None
    path: str | None
    sha256: str
    bytes: int
    characters: int
    documents: int | None = None
    ends: list[int] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)
    how: str = field(default="", compare=False)
    names: list[str] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        assert (self.url is None) != (self.path is None)

    def record(self) -> dict[str, str | int]:
        """The contents of source.json, which do not depend on how the text was obtained."""
        origin = {"url": self.url} if self.url is not None else {"path": self.path or ""}
        documents = {} if self.documents is None else {"documents": self.documents}
        size = {"bytes": self.bytes, "characters": self.characters}
        return {**origin, "sha256": self.sha256, **size, **documents, **self.changes.record()}


def fetch_corpus(
    raw: Path,
    *,
    corpus_url: str,
    corpus_sha256: str,
    offline_corpus: str,
    max_corpus_bytes: int,
    advance: Callable[[int], object] = lambda num_bytes: None,
) -> Source:
    """Fetch the corpus into `raw`; returns its description.

    corpus_url names a text, or a manifest of several texts, which are concatenated. Tried in order: `raw` itself (a
    single text only), the download cache, corpus_url. If corpus_url or a document of a manifest can't be reached,
    offline_corpus is used with a warning; the bundled text replaces the default text only. The first two are used
    only for the file that corpus_sha256 pins; "" accepts any text or manifest, downloads it each time, and warns.
    Names ending in .gz or .zst are unpacked. Each text must be UTF-8 and contain more than whitespace; together they
    have at most max_corpus_bytes bytes. Line ends become LF and byte order marks are dropped, with a message on
    standard error. Memory use does not depend on the text's size.
    advance: called with the number of bytes of each piece received.
    Raises FetchError or DataError, leaving `raw` unchanged.
    """
    url = redact(corpus_url)
    if not corpus_sha256:
        print_message(
            f'warning: corpus_sha256 is "": any text from {url} is accepted, and is read again when fetch runs\n'
            "(`dvc repro -f fetch`); to pin the text, set corpus_sha256 to its sha256 in source.json"
        )
    elif digest_of(raw) == corpus_sha256 and not is_manifest(corpus_url):
        require_file(raw, name="the text of an earlier run", max_bytes=max_corpus_bytes)
        if is_normal(raw):
            return _reported(_text(raw, corpus_sha256, Changes(), "kept", url=url), raw)
        if not cached_file(corpus_sha256):  # the normalized text will have another digest
            _add_to_cache(raw, corpus_sha256)
    source = _fetch_anew(raw, corpus_url, corpus_sha256, offline_corpus, max_corpus_bytes, advance)
    return _reported(source, raw)


def _fetch_anew(
    raw: Path,
    corpus_url: str,
    corpus_sha256: str,
    offline_corpus: str,
    max_corpus_bytes: int,
    advance: Callable[[int], object],
) -> Source:
    """As fetch_corpus, from the download cache, corpus_url or offline_corpus."""
    try:
        with replaced(raw, WRITABLE_TEXT) as temporary:
            fetch = _fetch_documents if is_manifest(corpus_url) else _fetch_text
            return fetch(temporary, corpus_url, corpus_sha256, max_corpus_bytes, advance)
    except UnreachableError as error:
        if Path(offline_corpus) == BUNDLED_TEXT and corpus_sha256 != DEFAULT_TEXT_SHA256:
            raise UnreachableError(f"{error}\n{_own_text_advice(corpus_sha256)}") from None
        return _fall_back(raw, offline_corpus, max_corpus_bytes, error)


def _fetch_text(to: Path, corpus_url: str, sha256: str, max_bytes: int, advance: Callable[[int], object]) -> Source:
    how = _fetch(to, corpus_url, sha256, max_bytes, advance)
    url = redact(corpus_url)
    with _text_of(to, path_of_url(corpus_url).lower(), max_bytes, url) as (text, changes):
        source = _text(text, file_digest(to), changes, how, url=url)
        if how == "downloaded" and sha256:
            _add_to_cache(to, sha256)
        if text != to:
            text.replace(to)
    return source


@contextmanager
def _text_of(path: Path, kind: str, max_bytes: int, name: str) -> Iterator[tuple[Path, Changes]]:
    """A file with the text of `path`, unpacked and normalized, and what was changed; `path` itself if nothing was.

    A new file is removed when the block ends.
    """
    changes = Changes()
    if not is_compressed(kind) and is_normal(path):
        yield path, changes
        return
    base, pid, suffix = path.name.rsplit(".", 2)  # an atomic_path, whose pattern also cleans up this file after a kill
    text = path.with_name(f"{base}.text.{pid}.{suffix}")
    try:
        num_bytes = 0
        with text.open("wb") as file:
            for piece in read_document(path, changes, kind=kind, name=name):
                num_bytes += len(piece)
                if num_bytes > max_bytes:
                    raise FetchError(
                        f"{name} has more than max_corpus_bytes={max_bytes} once unpacked; raise it to accept the text"
                    )
                file.write(piece)
        yield text, changes
    finally:
        text.unlink(missing_ok=True)


def _fetch_documents(
    to: Path, corpus_url: str, sha256: str, max_bytes: int, advance: Callable[[int], object]
) -> Source:
    how = _fetch(to, corpus_url, sha256, MAX_MANIFEST_BYTES, advance)
    actual_sha256 = file_digest(to)
    documents = parse_manifest(to.read_bytes(), corpus_url)
    if how == "downloaded" and sha256:
        _add_to_cache(to, sha256)
    changes = Changes()
    ends, num_characters = join_documents(documents, to, max_bytes=max_bytes, changes=changes, advance=advance)
    num_bytes, how = to.stat().st_size, f"{len(documents)} documents"
    names = [document.name for document in documents]
    return Source(
        redact(corpus_url), None, actual_sha256, num_bytes, num_characters, len(documents), ends, changes, how, names
    )


def _fetch(to: Path, corpus_url: str, sha256: str, max_bytes: int, advance: Callable[[int], object]) -> str:
    """Fetch a file with this digest ("" for any) from the download cache or its URL; returns which of the two."""
    if sha256 and (cached := cached_file(sha256)):
        copy_file(cached, to, name="the download cache", max_bytes=max_bytes)
        how = "download cache"
    else:
        name = f"corpus_url={redact(corpus_url)}"
        download(with_secret_query(corpus_url), to, max_bytes=max_bytes, name=name, advance=advance)
        how = "downloaded"
    actual_sha256 = file_digest(to)
    if sha256 not in ("", actual_sha256):
        raise _digest_error(corpus_url, sha256, actual_sha256, to.stat().st_size)
    return how


def _add_to_cache(path: Path, sha256: str) -> None:
    """Copy a file into the download cache."""
    with replaced(corpora_folder() / sha256, WRITABLE_CACHE) as temporary:
        copy_file(path, temporary, name=str(path), max_bytes=path.stat().st_size)


def _text(
    content: Path, sha256: str, changes: Changes, how: str, *, url: str | None = None, path: str | None = None
) -> Source:
    num_characters = count_characters(content, name=str(url or path))
    return Source(url, path, sha256, content.stat().st_size, num_characters, changes=changes, how=how)


def _reported(source: Source, raw: Path) -> Source:
    """The source, after reporting what the user of this text may not expect."""
    counts = {
        "line ends CRLF or CR became LF": source.changes.line_ends,
        "byte order marks were dropped": source.changes.byte_order_marks,
    }
    words = [f"{what} ({count})" for what, count in counts.items() if count]
    if words:
        print_message(f"fetch: {', '.join(words)}, as Python does when it reads a text file")
    ends = _ends_of_text(source, raw)
    if ends:
        others = f" and {len(ends) - 1} more have" if len(ends) > 1 else " has"
        total = sum(ends.values())
        times = "once" if total == 1 else f"{total} times"
        print_message(
            f"warning: {next(iter(ends))}{others} <|endoftext|> in the text, {times}. Each becomes seven "
            "plain tokens, not the end-of-text token.\n"
            "To train on documents, split the text there and write a manifest of the parts: "
            'docs/corpus.md has the commands ("Documents in one file")'
        )
    return source


def _ends_of_text(source: Source, raw: Path) -> dict[str, int]:
    """The text, or a manifest's documents, with <|endoftext|> in it -> how often."""
    names = source.names or [str(source.url or source.path)]
    bounds = pairwise([0, *source.ends, source.bytes])
    counts = {name: count_end_of_text(raw, start, end) for name, (start, end) in zip(names, bounds, strict=True)}
    return {name: count for name, count in counts.items() if count}


def _digest_error(url: str, expected: str, actual: str, num_bytes: int) -> FetchError:
    return FetchError(
        f"corpus_url={redact(url)} is not the expected text\n"
        f"  expected  corpus_sha256={expected}\n"
        f"  got       {actual} ({num_bytes} bytes)\n"
        "To accept the new text, set corpus_sha256 to the second; otherwise correct corpus_url. Nothing was kept"
    )


def _own_text_advice(corpus_sha256: str) -> str:
    """What to do if a text other than the default one can't be reached. corpus_sha256: its digest, "" if not pinned."""
    by_hand = f"put the text into {corpora_folder()}, named by its SHA-256, which is corpus_sha256"
    return (
        "Check the address, the network and the proxy (HTTPS_PROXY);\n"
        "or download the text and set corpus_url to the file: file:///absolute/path"
        + (f";\nor {by_hand}" if corpus_sha256 else "")
        + ".\nThe bundled text is not used: it replaces the default text only, not yours"
    )


def _fall_back(raw: Path, offline_corpus: str, max_bytes: int, unreachable: UnreachableError) -> Source:
    if not offline_corpus:
        raise UnreachableError(
            f"{unreachable}\n"
            "Check the network and the proxy (HTTPS_PROXY);\n"
            f"or put the text into {corpora_folder()}, named by its SHA-256, which is corpus_sha256;\n"
            "or set offline_corpus to a text to use instead"
        ) from None
    with replaced(raw, WRITABLE_TEXT) as temporary:
        try:
            copy_file(Path(offline_corpus), temporary, name=f"offline_corpus={offline_corpus}", max_bytes=max_bytes)
        except FetchError as error:
            raise FetchError(
                f"{unreachable};\nnor is there a text to use instead: {error};\nset offline_corpus to one, or go online"
            ) from None
        with _text_of(temporary, offline_corpus.lower(), max_bytes, offline_corpus) as (text, changes):
            source = _text(text, file_digest(temporary), changes, "fallback", path=offline_corpus)
            if text != temporary:
                text.replace(temporary)
    print_message(
        f"\n{FRAME}\nWARNING: ANOTHER TEXT IS USED. The corpus could not be reached.\n"
        f"  {unreachable}\n"
        f"  used instead: {offline_corpus}\n"
        "Results will differ from the published ones.\n"
        f"When online again, get the right text with:  dvc repro -f fetch\n"
        f"and then train on it with:                   dvc repro\n{FRAME}\n"
    )
    return source
