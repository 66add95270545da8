"""The stages fetch and split, run as DVC runs them."""

import json
from pathlib import Path

import pytest

from tests.data.loopback import CONTENT, DIGEST, OFFLINE, RAW, Server, closed_port
from tests.data.run_stage import run_stage, write_pipeline

SOURCE, DOCUMENTS = Path("data/corpus/source.json"), Path("data/corpus/documents.json")


def write_params(url: str, *, train_ratio: float = 0.5) -> None:
    values = {"corpus_url": url, "corpus_sha256": DIGEST, "offline_corpus": str(OFFLINE), "max_corpus_bytes": 1000}
    write_pipeline(**values, train_ratio=train_ratio)


def test_fetch_prints_how_the_text_was_obtained_in_one_line(server: Server) -> None:
    write_params(server.gives(CONTENT))
    for how in ("downloaded", "kept"):
        done = run_stage("fetch")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"data/corpus/raw.txt ({how}): 35 bytes, 31 characters, sha256 {DIGEST[:12]}\n"


def test_source_json_is_byte_identical_however_the_pinned_text_was_obtained(server: Server) -> None:
    write_params(server.gives(CONTENT))
    written = []
    for how in ("downloaded", "kept", "download cache"):
        assert how in run_stage("fetch").stdout
        written.append(SOURCE.read_bytes())
        SOURCE.unlink()
        if how == "kept":
            RAW.unlink()
    assert len(set(written)) == 1
    assert json.loads(written[0]) == {"url": server.url(), "sha256": DIGEST, "bytes": 35, "characters": 31}


def test_fetch_exits_with_2_and_one_message_on_404(server: Server) -> None:
    write_params(server.says(404))
    done = run_stage("fetch")
    assert done.returncode == 2
    assert f"error: corpus_url={server.url()} answered 404 Not Found" in done.stderr
    assert "Traceback" not in done.stderr
    assert not SOURCE.exists()


def test_fetch_falls_back_with_success() -> None:
    write_params(f"http://127.0.0.1:{closed_port()}/text")
    done = run_stage("fetch")
    assert done.returncode == 0
    assert "(fallback)" in done.stdout
    assert "ANOTHER TEXT" in done.stderr
    assert list(json.loads(SOURCE.read_bytes())) == ["path", "sha256", "bytes", "characters"]


def test_fetch_refuses_a_password_and_does_not_print_it() -> None:
    write_params(f"http://user:s3cret@127.0.0.1:{closed_port()}/text")
    done = run_stage("fetch")
    assert done.returncode == 2
    assert "~/.netrc" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


def test_split_keeps_every_byte_newlines_included() -> None:
    write_params("https://host.invalid/text")
    RAW.parent.mkdir(parents=True)
    RAW.write_bytes(CONTENT)
    DOCUMENTS.write_text('{"ends": []}')
    assert run_stage("split").returncode == 0
    train, val = (RAW.with_name(name).read_bytes() for name in ("train.txt", "val.txt"))
    assert train + val == CONTENT
    assert len(train.decode()) == 15


@pytest.mark.parametrize(
    ("raw", "message"), [(None, "raw.txt can't be read"), (b"a\xff", "offset 1"), (b"a", "train_ratio")]
)
def test_split_exits_with_2_on_a_text_it_cannot_use(raw: bytes | None, message: str) -> None:
    write_params("https://host.invalid/text")
    RAW.parent.mkdir(parents=True)
    if raw is not None:
        RAW.write_bytes(raw)
    done = run_stage("split")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
