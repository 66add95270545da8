"""A real HTTP server on 127.0.0.1 that misbehaves on request, and the text that the tests ask it for."""

import gzip
import hashlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reprogpt.data.fetch import Source, fetch_corpus
from reprogpt.errors import FetchError, UnreachableError

RAW = Path("data/corpus/raw.txt")
CONTENT = "“Low tide,” said Ann. \nIt was.\n".encode()  # 35 bytes, 31 characters
DIGEST = hashlib.sha256(CONTENT).hexdigest()
OFFLINE = Path("offline.txt")
OFFLINE_CONTENT = b"Another text.\n"

Answer = Callable[[BaseHTTPRequestHandler], None]


def obtain(url: str, *, sha256: str = DIGEST, offline: str = "", max_bytes: int = 1000) -> Source:
    """fetch_corpus into RAW, by default with the pinned text and no fallback."""
    return fetch_corpus(RAW, corpus_url=url, corpus_sha256=sha256, offline_corpus=offline, max_corpus_bytes=max_bytes)


def fails(url: str, message: str, *, sha256: str = DIGEST, max_bytes: int = 1000) -> str:
    """Assert that obtaining fails with `message` and does not fall back; return the whole message."""
    with pytest.raises(FetchError, match=message) as error:
        obtain(url, sha256=sha256, offline=str(OFFLINE), max_bytes=max_bytes)
    assert not isinstance(error.value, UnreachableError)
    assert not RAW.exists()
    return str(error.value)


_closed = socket.socket()
_closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused, and no other process can take it


def closed_port() -> int:
    """A port of 127.0.0.1 that refuses connections."""
    return int(_closed.getsockname()[1])


class Server:
    """Gives each path its configured answers in turn; the last one repeats."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[str] = []
        self.authorizations: list[str | None] = []
        self.bytes_sent = 0
        self._stopping = threading.Event()
        self._httpd = _HTTPServer(("127.0.0.1", 0), self._handler())
        self.port = self._httpd.server_address[1]
        self._thread = threading.Thread(target=self._httpd.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join(5)

    def speak_tls(self, certificate: Path, key: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._httpd.socket = context.wrap_socket(self._httpd.socket, server_side=True)

    def url(self, path: str = "/text", *, scheme: str = "http", user: str = "") -> str:
        return f"{scheme}://{user}127.0.0.1:{self.port}{path}"

    def gives(self, content: bytes, *, path: str = "/text", length: int | None = None, gzipped: bool = False) -> str:
        """Send `content`; with a larger `length`, a body that breaks off."""
        sent = gzip.compress(content) if gzipped else content

        def answer(handler: BaseHTTPRequestHandler) -> None:
            encoding = {"Content-Encoding": "gzip"} if gzipped else {}
            _head(handler, 200, {"Content-Length": str(length or len(sent)), **encoding})
            handler.wfile.write(sent)

        return self._then(path, answer)

    def gives_corrupt_gzip(self) -> str:
        headers = {"Content-Encoding": "gzip", "Content-Length": "4"}

        def answer(handler: BaseHTTPRequestHandler) -> None:
            _head(handler, 200, headers)
            handler.wfile.write(b"text")

        return self._then("/text", answer)

    def gives_chunks(self, chunk: bytes, count: int, *, path: str = "/text", ends: bool = True) -> str:
        """A body of unknown length; without its last, empty chunk if not `ends`."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            _head(handler, 200, {"Transfer-Encoding": "chunked"})
            for _ in range(count):
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.bytes_sent += len(chunk)
            if ends:
                handler.wfile.write(b"0\r\n\r\n")

        return self._then(path, answer)

    def stalls_after(self, content: bytes, *, length: int) -> str:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            _head(handler, 200, {"Content-Length": str(length)})
            handler.wfile.write(content)
            self._stopping.wait(2)

        return self._then("/text", answer)

    def says(self, status: int, *, path: str = "/text", headers: dict[str, str] | None = None) -> str:
        return self._then(path, lambda handler: _head(handler, status, {"Content-Length": "0", **(headers or {})}))

    def redirects(self, to: str, *, path: str = "/text") -> str:
        return self.says(302, path=path, headers={"Location": to})

    def redirects_at_length(self, to: str) -> str:
        """A redirect with a very long body of its own."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            _head(handler, 302, {"Location": to, "Content-Length": str(1 << 40)})
            for _ in range(1000):
                handler.wfile.write(bytes(1 << 16))
                self.bytes_sent += 1 << 16

        return self._then("/text", answer)

    def is_silent(self) -> str:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            self._stopping.wait(2)

        return self._then("/text", answer)

    def resets(self) -> str:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            # Lingering for 0 seconds makes close() send a reset.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()

        return self._then("/text", answer)

    def is_no_web_server(self) -> str:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")

        return self._then("/text", answer)

    def _then(self, path: str, answer: Answer) -> str:
        self.answers.setdefault(path, []).append(answer)
        return self.url(path)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                server.requests.append(self.path)
                server.authorizations.append(self.headers["Authorization"])
                answers = server.answers[self.path]
                (answers.pop(0) if len(answers) > 1 else answers[0])(self)
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


class _HTTPServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: in many tests the client closes the connection."""


def _head(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
