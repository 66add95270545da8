"""Downloads: status, length, broken bodies and redirects; addresses, proxies, TLS and file: URLs."""

import shutil
import subprocess
from pathlib import Path

import pytest

from reprogpt.data import download
from reprogpt.data.fetch import Source
from reprogpt.errors import PipelineError, UnreachableError
from reprogpt.urls import redact
from tests.data.loopback import CONTENT, DIGEST, OFFLINE, RAW, Server, closed_port, fails, obtain

SECRET = "s3cret"


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 410])
def test_permanent_error_status_fails_at_once(status: int, server: Server) -> None:
    assert server.says(status) in fails(server.url(), f"answered {status}")
    assert server.requests == ["/text"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_temporary_error_status_is_retried_then_fails(status: int, server: Server) -> None:
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


def test_lost_connection_is_retried(server: Server) -> None:
    server.resets()
    server.resets()
    server.gives(CONTENT)
    assert obtain(server.url(), offline=str(OFFLINE)).how == "downloaded"


def test_timeout_is_not_retried(server: Server) -> None:
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


def test_bound_applies_to_the_decoded_bytes_of_a_compressed_body(server: Server) -> None:
    fails(
        server.gives(b"x" * 1_000_000, gzipped=True), r"at least \d+ bytes, above max_corpus_bytes=2000", max_bytes=2000
    )


def test_compressed_body_is_decoded_and_its_compressed_length_is_not_bounded(server: Server) -> None:
    assert obtain(server.gives(CONTENT, gzipped=True), max_bytes=len(CONTENT)).sha256 == DIGEST  # gzip adds 20 bytes


def test_body_that_breaks_off_is_an_error_after_all_attempts(server: Server) -> None:
    fails(server.gives(CONTENT[:10], length=35), r"broke off: got 10 of 35 bytes .* \(gave up after 3 attempts\)")
    assert len(server.requests) == 3


def test_compressed_body_that_breaks_off_counts_compressed_bytes(server: Server) -> None:
    fails(server.gives(CONTENT, length=1000, gzipped=True), r"got \d\d of 1000 bytes")


def test_chunks_that_break_off_are_an_error(server: Server) -> None:
    fails(server.gives_chunks(b"x" * 10, 1, ends=False), "got .* of an unknown number of bytes", sha256="")


def test_body_that_stalls_is_an_error_not_a_timeout_to_fall_back_on(server: Server) -> None:
    fails(server.stalls_after(CONTENT[:10], length=35), r"of 35 bytes \(timed out\)")


def test_body_whose_compression_is_corrupt_is_an_error(server: Server) -> None:
    fails(server.gives_corrupt_gzip(), "broke off")


def test_body_that_breaks_off_once_is_downloaded_again(server: Server) -> None:
    server.gives(CONTENT[:10], length=35)
    server.gives(CONTENT)
    assert obtain(server.url()).sha256 == DIGEST


def test_redirects_are_followed_and_corpus_url_is_recorded(server: Server) -> None:
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


# Addresses, proxies and TLS


def test_https_to_a_server_without_tls_is_an_error(server: Server) -> None:
    server.gives(CONTENT)
    fails(server.url(scheme="https"), "no trustworthy TLS connection")
    assert server.requests == []


def test_https_to_a_proxy_without_tls_is_an_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url(scheme="https"))
    fails("http://host.invalid/text", "no trustworthy TLS connection")


def test_proxy_that_refuses_to_connect_falls_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", server.url())  # it does not know CONNECT, and answers 501
    assert obtain("https://host.invalid/text", offline=str(OFFLINE)).how == "fallback"


@pytest.fixture
def certificate(server: Server, tmp_path: Path) -> Path:
    """The certificate with which the server speaks TLS; it is not trusted yet."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=127.0.0.1"
    command += f" -addext subjectAltName=IP:127.0.0.1 -out {certificate} -keyout {key}"
    subprocess.run(command.split(), check=True, capture_output=True)
    server.speak_tls(certificate, key)
    return certificate


def test_certificate_must_be_trusted(server: Server, monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    server.gives(CONTENT)
    fails(server.url(scheme="https"), "no trustworthy TLS connection: .*certificate")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert obtain(server.url(scheme="https")).how == "downloaded"


def test_redirect_from_https_to_http_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, certificate: Path
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    server.redirects(server.url("/b"))
    server.gives(CONTENT, path="/b")
    fails(server.url(scheme="https"), "redirects to a http: address; only https is followed from there")
    server.redirects(server.url("/b", scheme="https"), path="/a")
    assert obtain(server.url("/a", scheme="https")).how == "downloaded"


def test_missing_certificate_bundle_is_an_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "no/such.pem")
    fails(server.url(scheme="https"), r"no/such\.pem")


def test_answer_that_is_not_http_is_an_error(server: Server) -> None:
    fails(server.is_no_web_server(), "can't be downloaded: .*SSH")


@pytest.mark.parametrize(
    "url",
    ["http://[::1/text", "http://127.0.0.1:99999/text", "http://a..b/text", "http:///text", "https://?", "http://\0/"],
)
def test_unusable_url_is_an_error(url: str) -> None:
    fails(url, "can't be downloaded")


@pytest.mark.parametrize("proxy", ["gopher://127.0.0.1:1", "http://"])
def test_unusable_proxy_is_an_error(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    fails("http://host.invalid/text", "can't be downloaded: .*check the address and the proxy")


def test_file_url_is_read_whatever_its_case_and_escapes(workspace: Path) -> None:
    (workspace / "with a space.txt").write_bytes(CONTENT)
    url = f"FILE://{workspace}/with%20a%20space.txt"
    assert obtain(url) == Source(url, None, DIGEST, 35, 31)
    assert RAW.read_bytes() == CONTENT


def test_file_url_with_another_text_is_refused(workspace: Path) -> None:
    fails((workspace / OFFLINE).as_uri(), "is not the expected text")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file://host/text.txt", "names a host"),
        ("file://text.txt", "names a host"),
        ("file://[", "names a host"),
        ("file:///no/such.txt", "/no/such.txt is missing"),
        ("file:///tmp", "/tmp is not a file"),
        ("file:///dev/null", "/dev/null is not a file"),
        ("file:///no%00name", "is missing"),
        ("file:///" + "x" * 300, "can't be read: File name too long"),
    ],
)
def test_file_url_that_names_no_file_of_this_machine_is_an_error(url: str, message: str) -> None:
    assert url in fails(url, message)


@pytest.mark.parametrize("user", [f"me:{SECRET}@", f"{SECRET}@", f"me:x@{SECRET}@"])
def test_user_and_password_are_never_shown(user: str, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    url = server.url(user=user)
    server.gives(CONTENT)
    shown = [repr(obtain(url, sha256=""))]
    assert server.url() in shown[0]
    RAW.unlink()
    server.answers.clear()
    server.says(404)
    server.gives(b"\xff")
    server.resets()
    for _ in range(3):
        with pytest.raises(PipelineError, match=server.url()) as error:
            obtain(url)
        shown.append(str(error.value))
    obtain(url, offline=str(OFFLINE))
    captured = capsys.readouterr()
    assert captured.err.count(server.url()) == 2  # unpinned, fallback
    assert SECRET not in " ".join([*shown, captured.out, captured.err])


def test_user_and_password_are_sent(server: Server) -> None:
    server.gives(CONTENT)
    obtain(server.url(user="me:x@"))
    assert server.authorizations == ["Basic bWU6eA=="]


@pytest.mark.parametrize("password", [f"{SECRET}/x", f"x/{SECRET}", f"{SECRET}?x", f"{SECRET}#x"])
def test_password_that_breaks_the_url_is_never_shown(password: str) -> None:
    assert SECRET not in fails(f"http://me:{password}@127.0.0.1:1/text", "can't be downloaded")


@pytest.mark.parametrize("url", ["https://host:8080/@you/text", "https://host/a:b@c", "file:///home/me@work/text"])
def test_address_without_a_user_is_shown_whole(url: str) -> None:
    assert redact(url) == url


@pytest.mark.parametrize("query", [f"X-Amz-Signature={SECRET}&X-Amz-Date=1", f"?sig={SECRET}", SECRET])
def test_the_environments_query_is_sent_and_never_shown_or_recorded(
    query: str, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REPROGPT_CORPUS_URL_QUERY", query)
    path = f"/text?{query.lstrip('?')}"
    server.gives(CONTENT, path=path)
    source = obtain(server.url())
    assert server.requests == [path]
    assert source.record()["url"] == server.url()
    RAW.unlink()
    shown = [repr(source)]
    server.answers.clear()
    server.says(404, path=path)
    server.redirects(f"ftp://host/{query}?token={SECRET}", path=path)
    server.resets()
    server.answers[path].append(server.answers["/text"][0])
    for _ in range(3):
        with pytest.raises(PipelineError, match=server.url()) as error:
            obtain(server.url(), sha256="")
        shown.append(str(error.value))
    captured = capsys.readouterr()
    assert SECRET not in " ".join([*shown, captured.out, captured.err])


def test_the_environments_query_is_added_to_the_urls_own_and_to_no_redirect(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPROGPT_CORPUS_URL_QUERY", f"sig={SECRET}")
    server.redirects("/other", path=f"/text?raw=1&sig={SECRET}")
    server.gives(CONTENT, path="/other")
    assert obtain(server.url("/text?raw=1")).url == server.url("/text?raw=1")
    assert server.requests == [f"/text?raw=1&sig={SECRET}", "/other"]
    obtain(Path("offline.txt").absolute().as_uri(), sha256="")  # a file has no query


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_names_the_environments_query_if_it_was_sent(
    status: int, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "REPROGPT_CORPUS_URL_QUERY" not in fails(server.says(status), f"answered {status}")
    monkeypatch.setenv("REPROGPT_CORPUS_URL_QUERY", f"sig={SECRET}")
    server.says(status, path=f"/text?sig={SECRET}")
    message = fails(server.url(), f"answered {status}")
    assert "with the query of REPROGPT_CORPUS_URL_QUERY: check it; a signed link may have expired" in message
    assert SECRET not in message


def test_an_address_that_redirects_with_a_credential_does_not_show_it(server: Server) -> None:
    server.redirects(f"/other?X-Amz-Signature={SECRET}")
    server.says(404, path=f"/other?X-Amz-Signature={SECRET}")
    assert SECRET not in fails(server.url(), "answered 404")


@pytest.mark.parametrize("name", ["C#/my text?.txt", "a?b.txt", "#.txt", "100%.txt"])
def test_a_file_url_may_have_every_character(name: str) -> None:
    path = Path(name).absolute()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CONTENT)
    for url in (path.as_uri(), f"file://{path}".replace("%", "%25")):
        assert obtain(url).how == "downloaded"
        shutil.rmtree(Path("../cache"))
        RAW.unlink()
