"""Token files: encoding in parts and on several threads gives the ids of the whole text."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from reprogpt.data import tokenize
from reprogpt.data.tokenize import encode_in_order, tokenize_file
from reprogpt.data.tokens import load_encoding, read_tokens
from reprogpt.errors import DataError
from tests.data.texts import QUICK, TEXTS

EOT = 50256


@pytest.fixture(scope="module")
def encoding() -> tiktoken.Encoding:
    return load_encoding("gpt2")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@settings(QUICK, max_examples=40)
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=6), st.integers(1, 50), st.integers(1, 3))
def test_the_file_holds_each_documents_ids_with_an_end_of_text_between_documents(
    tmp_path_factory: pytest.TempPathFactory,
    encoding: tiktoken.Encoding,
    documents: list[str],
    size: int,
    workers: int,
) -> None:
    folder = tmp_path_factory.mktemp("documents")
    text = write(folder / "text", "".join(documents).encode())
    ends: list[int] = []
    for document in documents:
        ends.append(len(document.encode()) + (ends[-1] if ends else 0))
    read: list[int] = []
    counts = tokenize_file(
        encoding,
        text,
        folder / "ids.npy",
        offsets=ends[:-1],
        advance=read.append,
        workers=workers,
        part_characters=size,
    )
    expected = [i for document in documents for i in [*encoding.encode_ordinary(document), EOT]][:-1]
    ids = read_tokens(folder / "ids.npy", vocab_size=50257)
    assert ids.dtype == np.uint16
    assert ids[:].tolist() == expected
    assert (counts.tokens, counts.characters) == (len(expected), sum(map(len, documents)))
    assert sum(read) == ends[-1]


def test_the_file_is_the_one_that_numpy_writes(encoding: tiktoken.Encoding, tmp_path: Path) -> None:
    text = write(tmp_path / "text", b"Every effort moves you. " * 100)
    tokenize_file(encoding, text, tmp_path / "ids.npy", part_characters=10)
    np.save(tmp_path / "numpy.npy", np.array(encoding.encode_ordinary(text.read_text()), np.uint16))
    assert (tmp_path / "ids.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_no_more_batches_are_read_than_threads_can_use(encoding: tiktoken.Encoding) -> None:
    read: list[int] = []

    def batches() -> Iterator[list[str]]:
        for number in range(100):
            read.append(number)
            yield [f"{number}"]

    ids = encode_in_order(encoding, batches(), 2)
    next(ids)
    assert len(read) == 5
    assert len(list(ids)) == 99


def test_a_text_that_is_not_utf8_leaves_no_file(encoding: tiktoken.Encoding, tmp_path: Path) -> None:
    text, tokens = write(tmp_path / "text", b"abc " * 100_000 + b"\xff"), tmp_path / "tokens/ids.npy"
    with pytest.raises(DataError, match=r"not UTF-8 .* 0xff at offset 400000;"):
        tokenize_file(encoding, text, tokens)
    assert list(tokens.parent.iterdir()) == []


@pytest.mark.parametrize("stretch", ["^", "ACGTTGCA", "漢字", "é", "\u200b"])
def test_a_long_stretch_without_a_split_point_has_the_ids_of_tiktoken_alone(
    encoding: tiktoken.Encoding, tmp_path: Path, stretch: str
) -> None:
    content = "before " + stretch * (1_200_000 // len(stretch)) + " after"
    text = write(tmp_path / "text", content.encode())
    counts = tokenize_file(encoding, text, tmp_path / "ids.npy")
    assert counts.characters == len(content)
    assert read_tokens(tmp_path / "ids.npy", vocab_size=50257)[:].tolist() == encoding.encode_ordinary(content)


@pytest.mark.parametrize(("blank", "token"), [(" ", 220), ("\n", None), ("\u3000", None)])
def test_more_whitespace_than_tiktoken_can_encode_before_a_word_is_cut(
    encoding: tiktoken.Encoding, tmp_path: Path, blank: str, token: int | None
) -> None:
    """GPT-2's regular expression takes all of it but the last character, which tiktoken can encode at a text's end."""
    text = write(tmp_path / "text", f"a{blank * 1_200_000}b".encode())
    tokenize_file(encoding, text, tmp_path / "ids.npy")
    ids = read_tokens(tmp_path / "ids.npy", vocab_size=50257)[:].tolist()
    last = encoding.encode_ordinary(f"{blank}b")
    assert ids == encoding.encode_ordinary(f"a{blank * 1_199_999}") + last
    if token:
        assert ids == [64, *[token] * 1_199_999, *last]


def test_num_cpus_counts_the_processors_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert tokenize.num_cpus() == 3
