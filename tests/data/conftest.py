"""A folder, a download cache and a server for each test, without the machine's proxy and certificate settings."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reprogpt.data import download
from tests.data.loopback import OFFLINE, OFFLINE_CONTENT, Server, closed_port

NETWORK_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle", "curl_ca_bundle")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty but for the offline text, with its download cache beside it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("REPROGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name in NETWORK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(download, "READ_SECONDS", 0.3)
    OFFLINE.write_bytes(OFFLINE_CONTENT)
    return folder


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture(params=["refused", "reset", "silent", "no such name", "proxy"])
def unreachable_url(request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL whose host can't be reached, one for each way to fail."""
    if request.param == "refused":
        return f"http://127.0.0.1:{closed_port()}/text"
    if request.param == "reset":
        return server.resets()
    if request.param == "silent":
        return server.is_silent()
    if request.param == "proxy":
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    return "http://host.invalid/text"
