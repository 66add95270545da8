"""The download cache: files named by their SHA-256, so that users can add files by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reprogpt.errors import FetchError
from reprogpt.files import atomic_path, file_digest
from reprogpt.messages import print_message
from reprogpt.paths import cache_folder

WRITABLE_CACHE = "set REPROGPT_CACHE to a writable folder"


def corpora_folder() -> Path:
    """The folder with the downloaded files."""
    return cache_folder() / "corpora"


def cached_file(sha256: str) -> Path | None:
    """The cached file with this digest, None if there is none. A corrupt file is removed with a warning."""
    cached = corpora_folder() / sha256
    actual = digest_of(cached)
    if actual not in (None, sha256):
        print_message(f"warning: {cached} failed its SHA-256 check ({actual}) and is removed from the download cache")
        with file_errors(cached, "remove it"):
            cached.unlink()
    return cached if actual == sha256 else None


def digest_of(path: Path) -> str | None:
    """SHA-256 of a file, None if it does not exist."""
    with file_errors(path, "make it readable, or remove it"):
        return file_digest(path) if path.is_file() else None


@contextmanager
def replaced(path: Path, remedy: str) -> Iterator[Path]:
    """files.atomic_path, but an OSError becomes a FetchError that ends in `remedy`."""
    with file_errors(path, remedy), atomic_path(path) as temporary:
        yield temporary


@contextmanager
def file_errors(path: Path, remedy: str) -> Iterator[None]:
    """Turn an OSError into a FetchError that names `path` and ends in `remedy`."""
    try:
        yield
    except OSError as error:
        raise FetchError(f"{path}: {error.strerror or error}; {remedy}") from None
