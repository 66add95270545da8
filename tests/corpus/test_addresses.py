"""What an address, a proxy, TLS or a file: URL can do to a download, and what is shown of it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from reprogpt.corpus import download
from reprogpt.corpus.fetch import Source
from reprogpt.errors import PipelineError
from tests.corpus.loopback import CONTENT, DIGEST, OFFLINE, RAW, Server, fails, obtain

SECRET = "s3cret"


def test_tls_that_the_server_does_not_speak_is_an_error(server: Server) -> None:
    server.gives(CONTENT)
    fails(server.url(scheme="https"), "no trustworthy TLS connection")
    assert server.requests == []


def test_tls_that_the_proxy_does_not_speak_is_an_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url(scheme="https"))
    fails("http://host.invalid/text", "no trustworthy TLS connection")


def test_proxy_that_will_not_connect_falls_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", server.url())  # it does not know CONNECT, and answers 501
    assert obtain("https://host.invalid/text", offline=str(OFFLINE)).how == "fallback"


@pytest.fixture
def certificate(server: Server, tmp_path: Path) -> Path:
    """The certificate by which the server speaks TLS; nobody trusts it yet."""
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


def test_tls_is_not_given_up_by_a_redirect(server: Server, monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
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
    fails((workspace / OFFLINE).as_uri(), "another text than expected")


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
    assert download.redact(url) == url
