"""Where the corpus is fetched from, and what is accepted."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from ruamel.yaml import YAML

from reprogpt.data.download_cache import corpora_folder
from reprogpt.data.fetch import DEFAULT_TEXT_SHA256, Source
from reprogpt.data.tokens import load_encoding
from reprogpt.errors import DataError, FetchError, UnreachableError
from reprogpt.paths import BUNDLED_TEXT
from tests.data.loopback import CONTENT, DIGEST, OFFLINE, OFFLINE_CONTENT, RAW, Server, obtain

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
    with pytest.raises(FetchError, match="is not the expected text"):
        obtain(server.gives(OTHER), offline=str(OFFLINE))
    assert not RAW.exists()


def test_two_failures_leave_the_earlier_text_byte_identical(server: Server) -> None:
    write(RAW, OTHER)
    server.gives(b"neither old nor new")
    server.says(404)
    for message in ("is not the expected text", "404"):
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


@pytest.mark.parametrize("sha256", [DEFAULT_TEXT_SHA256, DIGEST, ""], ids=["default", "own", "own, not pinned"])
def test_the_bundled_text_stands_in_for_the_default_text_only(sha256: str, server: Server) -> None:
    write(BUNDLED_TEXT, OFFLINE_CONTENT)
    server.stop()
    if sha256 == DEFAULT_TEXT_SHA256:
        assert obtain(server.url(), sha256=sha256, offline=str(BUNDLED_TEXT)).how == "fallback"
        return
    with pytest.raises(UnreachableError, match="bundled text is not used") as caught:
        obtain(server.url(), sha256=sha256, offline=str(BUNDLED_TEXT))
    assert "Check the address" in str(caught.value) and "file:///" in str(caught.value)
    assert (str(corpora_folder()) in str(caught.value)) == bool(sha256)
    assert not RAW.exists()


def test_the_default_text_is_that_of_params_yaml() -> None:
    values = YAML(typ="safe", pure=True).load(Path(__file__).resolve().parents[2] / "params.yaml")
    assert values["corpus_sha256"] == DEFAULT_TEXT_SHA256
    assert values["offline_corpus"] == str(BUNDLED_TEXT)


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


WINDOWS, BOOK = b"\xef\xbb\xbfOne\r\ntwo\rthree\n\xef\xbb\xbf\r\n", b"One\ntwo\nthree\n\xef\xbb\xbf\n"


def test_text_of_any_origin_has_lf_line_ends_and_no_mark_at_its_start(
    origin: str, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    source = obtain_from(origin, WINDOWS, server)
    assert RAW.read_bytes() == BOOK
    assert list(RAW.parent.iterdir()) == [RAW]
    record = source.record()
    assert record["sha256"] == digest(WINDOWS)
    assert (record["bytes"], record["characters"]) == (len(BOOK), len(BOOK.decode()))
    assert (record["line_ends_normalized"], record["byte_order_marks_dropped"]) == (3, 1)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fetch: ")]
    assert said == [
        "fetch: line ends CRLF or CR became LF (3), byte order marks were dropped (1), as Python does when it reads a "
        "text file"
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"One\r\ntwo\n", "line ends CRLF or CR became LF (1)"),
        (b"\xef\xbb\xbfOne\ntwo\n", "byte order marks were dropped (1)"),
    ],
)
def test_only_what_was_changed_is_said(
    content: bytes, words: str, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    obtain(server.gives(content), sha256=digest(content))
    assert capsys.readouterr().err == f"fetch: {words}, as Python does when it reads a text file\n"


def test_a_normalized_text_comes_from_the_download_cache_again(server: Server) -> None:
    first = obtain(server.gives(WINDOWS), sha256=digest(WINDOWS))
    server.stop()
    assert (corpora_folder() / digest(WINDOWS)).read_bytes() == WINDOWS
    for _ in range(2):
        again = obtain(server.url(), sha256=digest(WINDOWS))
        assert (again, again.how) == (first, "download cache")
    assert RAW.read_bytes() == BOOK


def test_a_pinned_text_from_before_normalization_is_normalized_and_its_file_cached(server: Server) -> None:
    write(RAW, WINDOWS)
    server.stop()
    for _ in range(2):
        assert obtain(server.url(), sha256=digest(WINDOWS)).record()["line_ends_normalized"] == 3
        assert RAW.read_bytes() == BOOK


def test_a_text_that_is_normal_has_no_word_of_it_in_its_record(server: Server) -> None:
    assert list(obtain(server.gives(CONTENT)).record()) == ["url", "sha256", "bytes", "characters"]


def test_the_offset_of_a_fault_is_that_in_the_file_as_it_came(server: Server) -> None:
    content = b"\xef\xbb\xbfa\r\nb\r\n\xff"
    with pytest.raises(DataError, match="0xff at offset 9"):
        obtain(server.gives(content), sha256=digest(content))


def test_a_text_of_a_mark_and_line_ends_is_empty(server: Server) -> None:
    content = b"\xef\xbb\xbf\r\n"
    with pytest.raises(DataError, match="is empty"):
        obtain(server.gives(content), sha256=digest(content))


PACKED = {".gz": gzip.compress(WINDOWS, mtime=0), ".zst": zstandard.ZstdCompressor().compress(WINDOWS)}


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("query", ["", "?raw=1"])
def test_a_packed_text_is_unpacked_and_cached_packed(server: Server, suffix: str, query: str) -> None:
    packed, path = PACKED[suffix], f"/text{suffix.upper()}{query}"
    url = server.gives(packed, path=path)
    for how in ("downloaded", "download cache"):
        source = obtain(url, sha256=digest(packed))
        assert source.how == how
        assert RAW.read_bytes() == BOOK
        assert source.record()["sha256"] == digest(packed)
        assert source.bytes == len(BOOK)
    assert [path.read_bytes() for path in cached_files()] == [packed]


@pytest.mark.parametrize("suffix", PACKED)
def test_a_packed_text_that_is_cut_or_too_large_once_unpacked_is_refused(server: Server, suffix: str) -> None:
    cut = PACKED[suffix][:-3]
    with pytest.raises(FetchError, match="can't be decompressed as"):
        obtain(server.gives(cut, path=f"/cut{suffix}"), sha256=digest(cut))
    large = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix](b"a" * 1001)
    with pytest.raises(FetchError, match="more than max_corpus_bytes=1000 once unpacked"):
        obtain(server.gives(large, path=f"/large{suffix}"), sha256=digest(large))
    assert not RAW.exists() and list(RAW.parent.iterdir()) == [] and cached_files() == []


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_memory_does_not_grow_with_a_text_that_is_normalized(suffix: str) -> None:
    text = b"\xef\xbb\xbf" + b"Low tide, said Ann.\r\n" * 2_000_000  # 42 MB, in pieces of 1 MiB
    path = write(Path(f"book{suffix}"), gzip.compress(text, 1) if suffix else text)
    sha256, num_bytes = digest(path.read_bytes()), len(text)
    del text
    tracemalloc.start()
    try:
        assert obtain(path.absolute().as_uri(), sha256=sha256, max_bytes=num_bytes).bytes == num_bytes - 2_000_003
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_end_of_text_in_a_text_of_any_origin_is_counted_in_a_warning(
    origin: str, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    obtain_from(origin, b"One.\n<|endoftext|>\nTwo. <|endoftext|> Three.\n", server)
    warning = capsys.readouterr().err
    assert "has <|endoftext|> in the text, 2 times" in warning
    assert "manifest" in warning and "docs/corpus.md" in warning


def test_end_of_text_becomes_seven_plain_tokens() -> None:
    """As the warning says."""
    encoding = load_encoding("gpt2")
    assert len(encoding.encode_ordinary("<|endoftext|>")) == 7


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
    program = "import sys, reprogpt.data.fetch; assert not {'requests', 'urllib3'} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
