"""Where the corpus is fetched from, and what is accepted."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reprogpt.corpus.download_cache import corpora_folder
from reprogpt.corpus.fetch import Source
from reprogpt.errors import DataError, FetchError, UnreachableError
from tests.corpus.loopback import CONTENT, DIGEST, OFFLINE, OFFLINE_CONTENT, RAW, Server, obtain

OTHER = b"An older text.\n"


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def cached_files() -> list[Path]:
    return [path for path in corpora_folder().parent.rglob("*") if path.is_file()]


def test_pinned_text_is_kept_untouched_without_asking_the_server(server: Server) -> None:
    write(RAW, CONTENT)
    os.utime(RAW, (1, 1))
    before = RAW.stat()
    source = obtain(server.gives(b"not this"))
    assert (RAW.stat().st_mtime_ns, RAW.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert server.requests == []
    assert source == Source(server.url(), None, DIGEST, 35, 31)
    assert source.how == "kept"


def test_download_is_written_to_raw_and_to_the_cache_byte_for_byte(server: Server) -> None:
    source = obtain(server.gives(CONTENT))
    assert source == Source(server.url(), None, DIGEST, 35, 31)
    assert source.how == "downloaded"
    assert RAW.read_bytes() == CONTENT
    assert (corpora_folder() / DIGEST).read_bytes() == CONTENT
    assert len(cached_files()) == 1


def test_download_replaces_another_text(server: Server) -> None:
    write(RAW, OTHER)
    obtain(server.gives(CONTENT))
    assert RAW.read_bytes() == CONTENT


def test_cached_copy_is_used_with_the_server_down(server: Server) -> None:
    obtain(server.gives(CONTENT))
    server.stop()
    RAW.unlink()
    assert obtain(server.url()).how == "download cache"
    assert RAW.read_bytes() == CONTENT


def test_file_put_into_the_cache_by_hand_is_used(server: Server) -> None:
    write(corpora_folder() / DIGEST, CONTENT)
    server.stop()
    assert obtain(server.url()).how == "download cache"


def test_corrupt_cached_file_is_reported_in_one_line_and_replaced(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = write(corpora_folder() / DIGEST, b"corrupt")
    assert obtain(server.gives(CONTENT)).how == "downloaded"
    assert cached.read_bytes() == RAW.read_bytes() == CONTENT
    [line] = capsys.readouterr().err.splitlines()
    assert str(cached) in line and digest(b"corrupt") in line


def test_corrupt_cached_file_is_removed_even_if_the_download_fails(server: Server) -> None:
    cached = write(corpora_folder() / DIGEST, b"corrupt")
    with pytest.raises(FetchError):
        obtain(server.says(404))
    assert not cached.exists()


def test_unpinned_text_is_downloaded_each_time_and_never_cached(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    write(RAW, CONTENT)
    write(corpora_folder() / DIGEST, CONTENT)
    server.gives(b"first\n")
    server.gives(b"second\n")
    assert obtain(server.url(), sha256="") == Source(server.url(), None, digest(b"first\n"), 6, 6)
    assert RAW.read_bytes() == b"first\n"
    assert 'warning: corpus_sha256 is ""' in capsys.readouterr().err
    assert obtain(server.url(), sha256="").how == "downloaded"
    assert RAW.read_bytes() == b"second\n"
    assert cached_files() == [corpora_folder() / DIGEST]


def test_pinned_text_gives_no_warning(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    obtain(server.gives(CONTENT))
    assert capsys.readouterr().err == ""


def test_record_is_the_same_however_the_pinned_text_was_obtained(server: Server) -> None:
    downloaded = obtain(server.gives(CONTENT))
    kept = obtain(server.url())
    RAW.unlink()
    cached = obtain(server.url())
    assert [source.how for source in (downloaded, kept, cached)] == ["downloaded", "kept", "download cache"]
    assert len({json.dumps(source.record()) for source in (downloaded, kept, cached)}) == 1
    assert downloaded.record() == {"url": server.url(), "sha256": DIGEST, "bytes": 35, "characters": 31}


def test_other_digest_shows_both_and_keeps_nothing(server: Server, workspace: Path) -> None:
    with pytest.raises(FetchError) as error:
        obtain(server.gives(OTHER))
    assert DIGEST in str(error.value) and digest(OTHER) in str(error.value)
    assert "set corpus_sha256" in str(error.value)
    assert not isinstance(error.value, UnreachableError)
    assert cached_files() == []
    assert [path for path in workspace.rglob("*") if path.is_file()] == [workspace / OFFLINE]


def test_other_digest_does_not_fall_back(server: Server) -> None:
    with pytest.raises(FetchError, match="another text than expected"):
        obtain(server.gives(OTHER), offline=str(OFFLINE))
    assert not RAW.exists()


def test_two_failures_leave_the_earlier_text_byte_identical(server: Server) -> None:
    write(RAW, OTHER)
    server.gives(b"neither old nor new")
    server.says(404)
    for message in ("another text than expected", "404"):
        with pytest.raises(FetchError, match=message):
            obtain(server.url())
        assert RAW.read_bytes() == OTHER
        assert sorted(path.name for path in RAW.parent.iterdir()) == ["raw.txt"]


def test_fallback_is_used_with_a_framed_warning(unreachable_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = obtain(unreachable_url, offline=str(OFFLINE))
    assert source == Source(None, "offline.txt", digest(OFFLINE_CONTENT), 14, 14)
    assert source.record() == {
        "path": "offline.txt",
        "sha256": digest(OFFLINE_CONTENT),
        "bytes": 14,
        "characters": 14,
    }
    assert source.how == "fallback"
    assert RAW.read_bytes() == OFFLINE_CONTENT
    warning = capsys.readouterr().err
    for words in (unreachable_url, "ANOTHER TEXT", "offline.txt", "Results will differ", "dvc repro -f fetch"):
        assert words in warning
    assert warning.count("=" * 78 + "\n") == 2


def test_fallback_is_never_put_into_the_cache(server: Server) -> None:
    server.stop()
    obtain(server.url(), sha256=digest(OFFLINE_CONTENT), offline=str(OFFLINE))
    assert cached_files() == []


def test_without_a_fallback_the_message_says_what_to_do(unreachable_url: str) -> None:
    write(RAW, OTHER)
    with pytest.raises(UnreachableError) as error:
        obtain(unreachable_url)
    for words in (unreachable_url, "can't be reached: ", "network", "proxy", str(corpora_folder()), "offline_corpus"):
        assert words in str(error.value)
    assert RAW.read_bytes() == OTHER


def test_missing_fallback_is_named(server: Server) -> None:
    server.stop()
    with pytest.raises(FetchError, match=r"offline_corpus=no/such\.txt: .* is missing") as error:
        obtain(server.url(), offline="no/such.txt")
    assert server.url() in str(error.value)
    assert not isinstance(error.value, UnreachableError)


@pytest.fixture(params=["downloaded", "kept", "cached", "file", "fallback", "unpinned"])
def origin(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def obtain_from(origin: str, content: bytes, server: Server, *, max_bytes: int = 1000) -> Source:
    """Obtain `content` with the right digest from one origin."""
    if origin == "kept":
        write(RAW, content)
    if origin == "cached":
        write(corpora_folder() / digest(content), content)
    if origin == "fallback":
        server.stop()
        OFFLINE.write_bytes(content)
        return obtain(server.url(), offline=str(OFFLINE), max_bytes=max_bytes)
    url = write(Path("local.txt"), content).absolute().as_uri() if origin == "file" else server.gives(content)
    return obtain(url, sha256="" if origin == "unpinned" else digest(content), max_bytes=max_bytes)


def test_text_of_any_origin_may_have_just_max_corpus_bytes(origin: str, server: Server) -> None:
    assert obtain_from(origin, CONTENT, server, max_bytes=35).bytes == 35


def test_text_of_any_origin_above_max_corpus_bytes_is_refused(origin: str, server: Server) -> None:
    with pytest.raises(FetchError, match=r"35 bytes, above max_corpus_bytes=34"):
        obtain_from(origin, CONTENT, server, max_bytes=34)
    assert RAW.exists() == (origin == "kept")
    assert len(cached_files()) == (origin == "cached")


def test_text_of_any_origin_that_is_not_utf8_is_refused_with_the_offset(origin: str, server: Server) -> None:
    with pytest.raises(DataError, match=r"not UTF-8 .* 0xff at offset 3"):
        obtain_from(origin, b"abc\xff\n", server)
    assert RAW.exists() == (origin == "kept")
    assert len(cached_files()) == (origin == "cached")


@pytest.mark.parametrize("content", [b"", b" \r\n\t", "\u2003\n".encode()])
def test_text_of_any_origin_that_is_empty_is_refused(origin: str, content: bytes, server: Server) -> None:
    with pytest.raises(DataError, match="is empty"):
        obtain_from(origin, content, server)
    assert RAW.exists() == (origin == "kept")


def test_cache_that_cannot_be_written_is_named(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REPROGPT_CACHE", str(write(tmp_path / "a-file", b"")))
    with pytest.raises(FetchError, match=r"a-file.*; set REPROGPT_CACHE"):
        obtain(server.gives(CONTENT))
    assert not RAW.exists()


def test_raw_that_cannot_be_written_is_named(server: Server) -> None:
    RAW.mkdir(parents=True)
    with pytest.raises(FetchError, match=r"raw\.txt: .*directory"):
        obtain(server.gives(CONTENT))


def test_nothing_imports_requests_before_a_download() -> None:
    program = "import sys, reprogpt.corpus.fetch; assert not {'requests', 'urllib3'} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
