"""Downloads from http, https and file URLs. The only file that imports requests."""

import re
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from http.client import responses as status_phrases
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

from reprogpt.errors import FetchError, UnreachableError
from reprogpt.urls import QUERY_VARIABLE, has_secret_query, path_of_url, redact

if TYPE_CHECKING:
    import requests

CONNECT_SECONDS = 10.0  # per address of the host
READ_SECONDS = 30.0  # without a byte from the host
ATTEMPTS = 3
BACKOFF_SECONDS = 0.5  # before the second attempt; doubled before each further one
PIECE_BYTES = 1 << 16
WEB_SCHEMES = ("http", "https")
FILE_PREFIX = "file://"


class _TransientError(Exception):
    """An attempt failed in a way that a retry may fix; `error` is raised if none does."""

    def __init__(self, error: FetchError) -> None:
        self.error = error


def download(
    url: str,
    to: Path,
    *,
    max_bytes: int,
    name: str | None = None,
    place: str = "corpus_url",
    advance: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Download `url` into `to`, decoding any Content-Encoding.

    Follows redirects between http and https, but not from https to http. Makes up to ATTEMPTS attempts if the server
    is busy or fails (429, 5xx), the body is cut short, or there is no connection; only one after a timeout.
    name: of the text in messages, with its address. place: where a user would correct the address.
    advance: called with the number of bytes of each piece received. After an error, `to` may be incomplete.
    Raises UnreachableError if the host can't be reached; FetchError for a status other than 200, any other redirect,
    a TLS error, more than max_bytes, and a file: URL that names no file on this machine; OSError if `to` can't be
    written. No message shows a credential in `url`.
    """
    name = name or f"{place}={redact(url)}"
    if url.lower().startswith(FILE_PREFIX):
        copy_file(path_of(url, name), to, name=name, max_bytes=max_bytes)
        return
    attempt = 1
    while True:  # urllib3's Retry does not cover the body, and would wait for a Retry-After of hours
        try:
            with to.open("wb") as file:
                for piece in _attempt(url, name, place, max_bytes):
                    file.write(piece)
                    advance(len(piece))
            return
        except _TransientError as failure:
            if attempt == ATTEMPTS:
                raise type(failure.error)(f"{failure.error} (gave up after {ATTEMPTS} attempts)") from None
        time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
        attempt += 1


def copy_file(path: Path, to: Path, *, name: str, max_bytes: int) -> None:
    """Copy a regular file to `to`. Raises FetchError as require_file does, OSError if `to` can't be written."""
    require_file(path, name=name, max_bytes=max_bytes)
    try:
        source = path.open("rb")
    except OSError as error:
        raise _unreadable(path, name, error) from None
    with source, to.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def require_file(path: Path, *, name: str, max_bytes: int) -> None:
    """Raise FetchError if `path` is missing, not a regular file, or larger than max_bytes. name: for messages."""
    try:
        if not path.is_file():  # reading a pipe or a device might never end
            raise FetchError(f"{name}: {path.absolute()} is {'not a file' if path.exists() else 'missing'}")
        num_bytes = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, name, error) from None
    if num_bytes > max_bytes:
        raise _too_large(name, f"{num_bytes} bytes", max_bytes)


def path_of(url: str, name: str) -> Path:
    """The file that a file: URL names. Raises FetchError, with `name`, if it names a host."""
    path = url[len(FILE_PREFIX) :]
    if not path.startswith("/"):
        raise FetchError(f"{name} names a host; for a file on this machine write file:///absolute/path")
    return Path(url2pathname(path))


def _unreadable(path: Path, name: str, error: OSError) -> FetchError:
    return FetchError(f"{name}: {path.absolute()} can't be read: {error.strerror or error}")


def _attempt(url: str, name: str, place: str, max_bytes: int) -> Iterator[bytes]:
    with _request(url, name) as response:
        status = response.status_code
        answer = f"{name} answered {status} {status_phrases.get(status, '')}".rstrip()
        if status == 429 or status >= 500:
            raise _TransientError(FetchError(f"{answer}; try again later"))
        if status in (401, 403) and has_secret_query(url):
            raise FetchError(f"{answer}, with the query of {QUERY_VARIABLE}: check it; a signed link may have expired")
        if status != 200:
            raise FetchError(f"{answer}; open it in a browser, and correct the address in {place}")
        yield from _body(response, name, max_bytes)


def _request(url: str, name: str) -> "requests.Response":
    """The response to a GET request; its body is not read yet."""
    # Imported here: importing requests takes 0.15 s, and a cached text does not need it.
    import requests
    from urllib3.exceptions import HTTPError, NewConnectionError, SSLError

    try:
        wait = (CONNECT_SECONDS, READ_SECONDS)
        return requests.get(url, stream=True, timeout=wait, hooks={"response": _check_redirect})
    except (OSError, ValueError, HTTPError) as error:  # requests' are OSErrors; it lets some of urllib3's through
        causes = list(_causes(error))
        reason = redact(_reason(causes[-1]))
        # TLS may cause a ProxyError, and nearly anything a ConnectionError: look at the chain of causes.
        if any(isinstance(cause, (ssl.SSLError, SSLError)) for cause in causes):
            raise FetchError(
                f"{name}: no trustworthy TLS connection: {reason}; check the machine's clock and REQUESTS_CA_BUNDLE"
            ) from None
        if any(isinstance(cause, TimeoutError) for cause in causes):
            raise UnreachableError(f"{name} can't be reached: {reason}") from None
        no_connection = (ConnectionError, socket.gaierror, NewConnectionError, requests.exceptions.ProxyError)
        if any(isinstance(cause, no_connection) for cause in causes):
            raise _TransientError(UnreachableError(f"{name} can't be reached: {reason}")) from None
        if isinstance(error, ValueError) and not isinstance(error, requests.exceptions.InvalidSchema):
            reason = "not a valid URL"  # the libraries' messages quote parts of the URL, possibly the password
        raise FetchError(
            f"{name} can't be downloaded: {reason}; check the address and the proxy (HTTPS_PROXY)"
        ) from None


def _check_redirect(response: "requests.Response", **_: Any) -> None:
    """Called by requests with each response, before it follows a redirect."""
    if not response.is_redirect:
        return
    response.close()  # otherwise requests reads the redirect's body, however long
    scheme = urlsplit(urljoin(response.url, response.headers["location"])).scheme
    allowed = ("https",) if urlsplit(response.url).scheme == "https" else WEB_SCHEMES  # never from https to http
    if scheme not in allowed:
        raise FetchError(
            f"{redact(path_of_url(response.url))} redirects to a {scheme}: address; only {' and '.join(allowed)} "
            f"{'is' if len(allowed) == 1 else 'are'} followed from there.\n"
            "Set corpus_url to the address of the text itself"
        )


def _body(response: "requests.Response", name: str, max_bytes: int) -> Iterator[bytes]:
    """The decoded body. Its length is checked during reading, as Content-Length may be wrong or missing."""
    content_length = response.raw.length_remaining  # Content-Length, None if unknown
    if content_length is not None and content_length > max_bytes and "Content-Encoding" not in response.headers:
        raise _too_large(name, f"{content_length} bytes", max_bytes)
    num_bytes = 0
    pieces = response.iter_content(PIECE_BYTES)
    while True:
        try:
            piece = next(pieces, None)
        except OSError as error:  # the host responded, so it is reachable
            expected = "an unknown number of" if content_length is None else content_length
            reason = redact(_reason(list(_causes(error))[-1]))
            got = f"got {response.raw.tell()} of {expected} bytes"
            raise _TransientError(FetchError(f"{name} broke off: {got} ({reason}); try again later")) from None
        if piece is None:
            return
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            raise _too_large(name, f"at least {num_bytes} bytes", max_bytes)
        yield piece


def _too_large(name: str, size: str, max_bytes: int) -> FetchError:
    return FetchError(f"{name} has {size}, above max_corpus_bytes={max_bytes}; raise it to accept the text")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and its chain of causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r"^IncompleteRead\(.*\)$", "the connection was closed", words)
