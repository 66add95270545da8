"""What a server can do to a download: status, length, a broken body, a redirect."""

from pathlib import Path

import pytest

from reprogpt.corpus import download
from reprogpt.corpus.fetch import Source
from reprogpt.errors import UnreachableError
from tests.corpus.loopback import CONTENT, DIGEST, OFFLINE, Server, closed_port, fails, obtain


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 410])
def test_status_that_will_not_pass_fails_at_once(status: int, server: Server) -> None:
    assert server.says(status) in fails(server.url(), f"answered {status}")
    assert server.requests == ["/text"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_status_that_may_pass_is_tried_again_then_fails(status: int, server: Server) -> None:
    assert server.says(status) in fails(server.url(), rf"answered {status} .* \(gave up after 3 attempts\)")
    assert server.requests == ["/text"] * download.ATTEMPTS == ["/text"] * 3


def test_server_that_recovers_is_used(server: Server) -> None:
    server.says(503, headers={"Retry-After": "3600"})
    server.says(429)
    server.gives(CONTENT)
    assert obtain(server.url()).how == "downloaded"


def test_wait_doubles_with_each_attempt(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    fails(server.says(500), "500")
    assert waits == [0.01, 0.02]


def test_lost_connection_is_tried_again(server: Server) -> None:
    server.resets()
    server.resets()
    server.gives(CONTENT)
    assert obtain(server.url(), offline=str(OFFLINE)).how == "downloaded"


def test_timeout_is_not_tried_again(server: Server) -> None:
    with pytest.raises(UnreachableError, match="timed out"):
        obtain(server.is_silent())
    assert len(server.requests) == 1


def test_body_above_the_bound_is_refused_by_its_announced_length(server: Server) -> None:
    fails(server.gives(CONTENT, length=10**15), r"1000000000000000 bytes, above max_corpus_bytes=1000")
    assert len(server.requests) == 1


def test_body_of_unknown_length_is_stopped_while_streaming(server: Server) -> None:
    fails(
        server.gives_chunks(b"x" * 65536, 1000), r"at least \d+ bytes, above max_corpus_bytes=100000", max_bytes=100_000
    )
    assert len(server.requests) == 1
    assert server.bytes_sent < 1000 * 65536


def test_body_of_unknown_length_within_the_bound_is_accepted(server: Server) -> None:
    assert obtain(server.gives_chunks(CONTENT, 1), max_bytes=len(CONTENT)).bytes == len(CONTENT)


def test_bound_holds_for_the_decoded_bytes_of_a_compressed_body(server: Server) -> None:
    fails(
        server.gives(b"x" * 1_000_000, gzipped=True), r"at least \d+ bytes, above max_corpus_bytes=2000", max_bytes=2000
    )


def test_compressed_body_is_decoded_and_its_length_on_the_wire_is_no_matter(server: Server) -> None:
    assert obtain(server.gives(CONTENT, gzipped=True), max_bytes=len(CONTENT)).sha256 == DIGEST  # gzip adds 20 bytes


def test_body_that_breaks_off_is_an_error_after_all_attempts(server: Server) -> None:
    fails(server.gives(CONTENT[:10], length=35), r"broke off: got 10 of 35 bytes .* \(gave up after 3 attempts\)")
    assert len(server.requests) == 3


def test_compressed_body_that_breaks_off_counts_bytes_on_the_wire(server: Server) -> None:
    fails(server.gives(CONTENT, length=1000, gzipped=True), r"got \d\d of 1000 bytes")


def test_chunks_that_break_off_are_an_error(server: Server) -> None:
    fails(server.gives_chunks(b"x" * 10, 1, ends=False), "got .* of an unknown number of bytes", sha256="")


def test_body_that_stalls_is_an_error_not_a_timeout_to_fall_back_on(server: Server) -> None:
    fails(server.stalls_after(CONTENT[:10], length=35), r"of 35 bytes \(timed out\)")


def test_body_whose_compression_is_corrupt_is_an_error(server: Server) -> None:
    fails(server.gives_corrupt_gzip(), "broke off")


def test_body_that_breaks_off_once_is_fetched_again(server: Server) -> None:
    server.gives(CONTENT[:10], length=35)
    server.gives(CONTENT)
    assert obtain(server.url()).sha256 == DIGEST


def test_redirects_are_followed_and_the_address_asked_for_is_recorded(server: Server) -> None:
    server.gives(CONTENT, path="/c")
    server.redirects("/c", path="/b")
    assert obtain(server.redirects(server.url("/b"))) == Source(server.url(), None, DIGEST, 35, 31)
    assert server.requests == ["/text", "/b", "/c"]


@pytest.mark.parametrize("hops", [1, 2])
@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
def test_redirect_to_another_scheme_is_refused(scheme: str, hops: int, server: Server) -> None:
    target = f"{scheme}://{Path('local.txt').absolute()}"
    Path("local.txt").write_bytes(CONTENT)
    server.redirects(target if hops == 1 else "/second")
    server.redirects(target, path="/second")
    fails(server.url(), f"redirects to a {scheme}: address; only http and https are followed from there")


def test_redirect_in_a_circle_is_an_error(server: Server) -> None:
    fails(server.redirects("/text"), "redirects")


def test_redirects_own_body_is_not_read(server: Server) -> None:
    server.gives(CONTENT, path="/b")
    assert obtain(server.redirects_at_length("/b")).sha256 == DIGEST
    assert server.bytes_sent < 1000 << 16


def test_redirect_to_a_host_that_is_down_falls_back(server: Server) -> None:
    url = server.redirects(f"http://127.0.0.1:{closed_port()}/text")
    assert obtain(url, offline=str(OFFLINE)).how == "fallback"
