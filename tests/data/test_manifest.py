"""A corpus of several files: what a manifest may contain, and the text that it gives."""

import gzip
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from reprogpt.data.download_cache import corpora_folder
from reprogpt.data.manifest import parse_manifest
from reprogpt.data.tokens import load_encoding
from reprogpt.errors import DataError, FetchError, UnreachableError
from tests.data.loopback import OFFLINE, OFFLINE_CONTENT, RAW, Server, obtain
from tests.data.run_stage import run_stage, write_pipeline

TEXTS = [b"One <|endoftext|> two. \n", "Zwölf\n\n".encode(), b"  Low tide, said Ann."]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".txt": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def line(address: str, content: bytes) -> str:
    return f"{address} {digest(content)} {len(content)}\n"


def local_manifest(files: dict[str, bytes], *, lines: str | None = None) -> str:
    """The URL of a manifest in a folder of its own, of files in a folder below it."""
    folder = Path("my corpus").absolute()
    (folder / "texts").mkdir(parents=True)
    for name, content in files.items():
        (folder / "texts" / name).write_bytes(content)
    listing = lines or "".join(line(f"texts/{name}", content) for name, content in files.items())
    (folder / "all.manifest").write_bytes(listing.encode())
    return (folder / "all.manifest").as_uri()


def web_manifest(server: Server, files: dict[str, bytes]) -> tuple[str, bytes]:
    """The URL and the bytes of a manifest on the server, beside its files."""
    for name, content in files.items():
        server.gives(content, path=f"/corpus/{name}")
    manifest = "".join(line(name, content) for name, content in files.items()).encode()
    return server.gives(manifest, path="/corpus/all.manifest?raw=1"), manifest


def compressed(suffixes: list[str]) -> dict[str, bytes]:
    """TEXTS as files, compressed by their suffixes."""
    numbered = enumerate(zip(TEXTS, suffixes, strict=True))
    return {f"text {number}{suffix}": COMPRESS[suffix](text) for number, (text, suffix) in numbered}


@pytest.mark.parametrize("suffixes", [[".txt"] * 3, [".gz"] * 3, [".zst"] * 3, [".zst", ".txt", ".gz"]])
def test_documents_are_concatenated_whatever_their_compression(suffixes: list[str]) -> None:
    url = local_manifest(compressed(suffixes))
    source = obtain(url, sha256="")
    assert RAW.read_bytes() == b"".join(TEXTS)
    assert source.ends == [24, 32]
    manifest = Path("my corpus/all.manifest").read_bytes()
    assert source.record() == {"url": url, "sha256": digest(manifest), "bytes": 53, "characters": 52, "documents": 3}


def test_documents_from_the_web_are_cached_compressed_and_downloaded_once(server: Server) -> None:
    files = {name.replace(" ", "-"): content for name, content in compressed([".gz", ".zst", ".txt"]).items()}
    url, manifest = web_manifest(server, files)
    first = obtain(url, sha256=digest(manifest))
    assert RAW.read_bytes() == b"".join(TEXTS)
    assert {path.name for path in corpora_folder().iterdir()} == {digest(c) for c in [manifest, *files.values()]}
    server.stop()
    RAW.unlink()
    assert obtain(url, sha256=digest(manifest)) == first
    assert RAW.read_bytes() == b"".join(TEXTS)


def test_a_pinned_manifest_must_have_the_digest(server: Server) -> None:
    url, manifest = web_manifest(server, compressed([".txt"] * 3))
    with pytest.raises(FetchError, match=f"is not the expected text(.|\n)*{digest(manifest)}"):
        obtain(url, sha256="0" * 64)
    assert not RAW.exists() and not corpora_folder().exists()


def test_a_host_that_cannot_be_reached_falls_back_to_offline_corpus(server: Server) -> None:
    manifest = local_manifest({}, lines=line(server.resets(), TEXTS[0]))
    source = obtain(manifest, sha256="", offline=str(OFFLINE))
    assert (source.how, source.documents, source.ends) == ("fallback", None, [])
    assert RAW.read_bytes() == OFFLINE_CONTENT
    with pytest.raises(UnreachableError, match=r"line 1 of all.manifest: http://"):
        obtain(manifest, sha256="")


def test_a_document_with_another_digest_is_refused_and_nothing_kept(server: Server) -> None:
    manifest = local_manifest({}, lines=line(server.gives(b"other\n"), TEXTS[0]))
    with pytest.raises(FetchError, match=r"line 1 of all.manifest: http://.* is not the file(.|\n)*6 bytes"):
        obtain(manifest, sha256="")
    assert not RAW.exists()
    assert list(corpora_folder().iterdir()) == []


def test_a_document_of_another_size_is_refused() -> None:
    with pytest.raises(FetchError, match=r"not the file that the manifest(.|\n)*\(23 bytes\)(.|\n)*\(24 bytes\)"):
        obtain(local_manifest({"a": TEXTS[0]}, lines=f"texts/a {digest(TEXTS[0])} 23\n"), sha256="")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc\xff", "line 1 of all.manifest: .*/texts/a is not UTF-8 text: byte 0xff at offset 3"),
        (b"", "line 1 of all.manifest: .*/texts/a is empty: 0 bytes;"),
        (b" \n", "line 1 of all.manifest: .*/texts/a is empty: 2 bytes, all whitespace"),
    ],
)
def test_every_document_must_be_a_text(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        obtain(local_manifest({"a": content, "b": b"b"}), sha256="")
    assert not RAW.exists()


def test_the_offset_of_a_bad_byte_is_relative_to_its_document() -> None:
    with pytest.raises(DataError, match=r"line 2 of all.manifest: .*texts/b is not UTF-8 .* offset 1;"):
        obtain(local_manifest({"a": b"a", "b": b"b\xff"}), sha256="")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_max_corpus_bytes_applies_to_decompressed_bytes(suffix: str) -> None:
    bomb = COMPRESS[suffix](b"x" * 5_000_000)
    assert len(bomb) < 6_000
    url = local_manifest({f"a{suffix}": bomb})
    with pytest.raises(FetchError, match=r"line 1 .* more than max_corpus_bytes=6000 once unpacked"):
        obtain(url, sha256="", max_bytes=6_000)
    assert not RAW.exists()


def test_max_corpus_bytes_applies_to_all_documents_together() -> None:
    url = local_manifest(compressed([".txt"] * 3))
    with pytest.raises(FetchError, match=r"line 3 .* more than max_corpus_bytes=52"):
        obtain(url, sha256="", max_bytes=52)
    assert obtain(url, sha256="", max_bytes=53).bytes == 53


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("cut", [1, 10, -1])
def test_a_compressed_document_that_is_cut_short_is_refused(suffix: str, cut: int) -> None:
    content = COMPRESS[suffix](b"".join(TEXTS))[:cut]
    with pytest.raises(FetchError, match=rf"line 1 of all.manifest: .*a{suffix} can't be decompressed as "):
        obtain(local_manifest({f"a{suffix}": content}), sha256="")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_document_may_have_several_frames_and_must_be_compressed(suffix: str) -> None:
    compress = COMPRESS[suffix]
    url = local_manifest({f"a{suffix}": compress(TEXTS[0]) + compress(b"y" * 400_000) + compress(TEXTS[2])})
    obtain(url, sha256="", max_bytes=10**6)
    assert RAW.read_bytes() == TEXTS[0] + b"y" * 400_000 + TEXTS[2]
    Path("my corpus").rename("before")
    with pytest.raises(FetchError, match="can't be decompressed as"):
        obtain(local_manifest({f"a{suffix}": b"plain text"}), sha256="")


def problems(text: str, url: str = "file:///home/me/all.manifest") -> str:
    with pytest.raises(FetchError) as error:
        parse_manifest(text.encode(), url)
    return str(error.value)


def test_all_wrong_lines_are_reported_at_once() -> None:
    good = line("a b.txt", b"x")
    found = problems(f"{good}\nfew\na {'0' * 63} 1\na {'0' * 64} 1e3\nftp://host/a {'0' * 64} 1\n{good}")
    for words in ("line 3 of all.manifest: 1 of 3 fields", "line 4 ", "'1e3'", "ftp://host/a is not allowed"):
        assert words in found
    assert "line 1" not in found and "line 2" not in found
    assert "and 3 more" in problems("x\n" * 8)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://host/x", "FILE:/etc/passwd"])
def test_a_manifest_from_the_web_names_no_file_of_this_machine(address: str) -> None:
    assert "only https and http" in problems(line(address, b"x"), "https://host/all.manifest")
    assert parse_manifest(line("/etc/passwd", b"x").encode(), "https://host/x/all.manifest")[0].address == (
        "https://host/etc/passwd"
    )


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_manifest_is_refused(text: str) -> None:
    assert "is an empty manifest" in problems(text)


def test_only_a_name_in_dot_manifest_is_a_manifest(server: Server) -> None:
    text = line("a", b"x").encode()
    assert obtain(server.gives(text, path="/manifest.txt"), sha256=digest(text)).documents is None
    assert RAW.read_bytes() == text


def test_a_missing_document_is_named_without_the_password_in_its_url(server: Server) -> None:
    with pytest.raises(FetchError, match=r"line 1 of all.manifest: .*/nowhere: .* is missing"):
        obtain(local_manifest({}, lines=line("nowhere", b"x")), sha256="")
    Path("my corpus").rename("before")
    server.says(404)
    with pytest.raises(FetchError, match=r"answered 404 .* correct the address in the manifest") as error:
        obtain(local_manifest({}, lines=line(server.url(user="me:s3cret@"), b"x")), sha256="")
    assert "s3cret" not in str(error.value)


def test_the_stages_put_an_end_of_text_between_the_documents_of_each_part() -> None:
    texts = [b"One <|endoftext|> two.\n", b"Three.\n", b"Four five six.", b"Seven"]
    url = local_manifest({str(number): text for number, text in enumerate(texts)})
    values = {"corpus_url": url, "corpus_sha256": "", "offline_corpus": "", "max_corpus_bytes": 1000}
    write_pipeline(**values, train_ratio=0.8, encoding="gpt2")
    for stage in ("fetch", "split", "tokenize"):
        done = run_stage(stage)
        assert done.returncode == 0, done.stderr
    encoding = load_encoding("gpt2")
    joined = b"".join(texts).decode()
    assert int(0.8 * len(joined)) == 39
    expected = {"train": [*texts[:2], texts[2][:9]], "val": [texts[2][9:], texts[3]]}
    for part, documents in expected.items():
        ids = [i for text in documents for i in [*encoding.encode_ordinary(text.decode()), 50256]][:-1]
        assert np.load(f"data/tokens/{part}.npy").tolist() == ids
        assert Path(f"data/corpus/{part}.txt").read_bytes() == b"".join(documents)


@pytest.mark.parametrize("folder", ["C#", "what?", "a#b?c=d"])
@pytest.mark.parametrize("is_escaped", [True, False])
def test_a_folder_may_have_a_hash_or_a_question_mark_in_its_name(folder: str, is_escaped: bool) -> None:
    local_manifest({"text #1?.txt": TEXTS[1]})
    Path("my corpus").rename(folder)
    path = Path(folder, "all.manifest").absolute()
    source = obtain(path.as_uri() if is_escaped else f"file://{path}", sha256="")
    assert source.documents == 1
    assert RAW.read_bytes() == TEXTS[1]


def test_a_document_on_the_web_is_unpacked_whatever_its_query(server: Server) -> None:
    packed = gzip.compress(TEXTS[1])
    url = server.gives(packed, path="/text.gz?raw=1")
    obtain(local_manifest({}, lines=line(url, packed)), sha256="")
    assert RAW.read_bytes() == TEXTS[1]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_line_ends_and_marks_of_each_document_are_normalized(suffix: str) -> None:
    texts = [b"\xef\xbb\xbfOne\r\n", b"\xef\xbb\xbftwo\rthree\r", b"four\n"]
    source = obtain(local_manifest({f"{i}{suffix}": COMPRESS[suffix](text) for i, text in enumerate(texts)}), sha256="")
    assert RAW.read_bytes() == b"One\ntwo\nthree\nfour\n"
    assert source.ends == [4, 14]
    assert source.record()["line_ends_normalized"] == 3
    assert source.record()["byte_order_marks_dropped"] == 2


@pytest.mark.parametrize("end", ["\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_manifest_may_be_saved_on_windows(end: str, mark: str) -> None:
    lines = "".join(line(f"texts/{i}", text) for i, text in enumerate(TEXTS))
    files = {str(i): text for i, text in enumerate(TEXTS)}
    source = obtain(local_manifest(files, lines=mark + lines.replace("\n", end)), sha256="")
    assert source.documents == 3
    assert RAW.read_bytes() == b"".join(TEXTS)


def test_the_offset_of_a_fault_is_that_in_the_document(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2 of all\.manifest: .* 0xff at offset 6"):
        obtain(local_manifest({"a": TEXTS[1], "b": b"\xef\xbb\xbfa\r\n\xff"}), sha256="")


def test_the_warning_of_end_of_text_names_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    files = {"a.txt": b"One.\n", "b.txt": b"Two <|endoftext|>\n", "c.txt": b"Three.<|endo", "d.txt": b"ftext|> four."}
    obtain(local_manifest(files), sha256="")
    path = Path("my corpus/texts").absolute()
    assert f"line 2 of all.manifest: {path / 'b.txt'} has <|endoftext|> in the text, once" in capsys.readouterr().err
    files["d.txt"] = b"<|endoftext|><|endoftext|>"
    shutil.rmtree("my corpus")
    obtain(local_manifest(files), sha256="")
    said = capsys.readouterr().err
    assert f"{path / 'b.txt'} and 1 more have <|endoftext|> in the text, 3 times" in said
