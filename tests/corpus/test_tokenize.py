"""Ids made in parts and on several threads are those of the whole text."""

from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reprogpt.corpus import tokenize
from reprogpt.corpus.split_points import MAX_STRETCH, split_text_at
from reprogpt.corpus.tokenize import encode_in_order, tokenize_file
from reprogpt.corpus.tokens import load_encoding, read_tokens
from reprogpt.errors import DataError

# Every kind of sign that GPT-2's pattern tells apart, in and out of ASCII, and what Unicode has that looks like one.
SIGNS = "aZ7 '\n\t.!-sldtmrev\r\x0b\x1c\x85\xa0éñßЖ漢字ァ。、，！？٣²½Ⅷ\u2003\u2028\u200b\u0301🙂<|>"  # noqa: RUF001
WORDS = ["'s", "'ll", "'re", "don't", "<|endoftext|>", "\r\n", "  ", "\n\n", "12ab", "漢字。漢", "x" * 9, " " * 9]
LETTERS = st.one_of(st.sampled_from(SIGNS), st.characters(exclude_categories=["Cs"]), st.sampled_from(WORDS))
TEXTS = st.lists(LETTERS, max_size=60).map("".join)
QUICK = settings(deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
ENDS_AT = 50256


@pytest.fixture(scope="module")
def encoding() -> tiktoken.Encoding:
    return load_encoding("gpt2")


def block_bounds(text: str, size: int, read: int) -> list[str]:
    """`text`, read `read` characters at a time, in parts."""
    pieces = [text[start : start + read] for start in range(0, len(text), read)]
    return list(split_text_at(pieces, size=size, name="text"))


@settings(QUICK, max_examples=400)
@given(TEXTS, st.integers(1, 50), st.integers(1, 50))
@example("a\n\nb", 1, 1)
@example("it's 12ab, x  \n y 'll '", 1, 3)
def test_parts_of_any_size_give_the_ids_of_the_whole(
    encoding: tiktoken.Encoding, text: str, size: int, read: int
) -> None:
    parts = block_bounds(text, size, read)
    assert "".join(parts) == text
    assert [i for part in parts for i in encoding.encode_ordinary(part)] == encoding.encode_ordinary(text)


def test_every_size_of_part_gives_the_ids_of_the_whole(encoding: tiktoken.Encoding) -> None:
    text = "".join(np.random.default_rng(0).choice([*SIGNS, *WORDS, " ", "e", "t"], 3000))
    whole = encoding.encode_ordinary(text)
    for size in range(1, 51):
        parts = block_bounds(text, size, 64)
        assert len(parts) > 10
        assert [i for part in parts for i in encoding.encode_ordinary(part)] == whole, size


def test_parts_have_about_the_size_asked_for() -> None:
    parts = block_bounds("word " * 1000, 100, 700)
    assert {len(part) for part in parts[1:-1]} == {100}


@pytest.mark.parametrize("sign", ["a", " ", "\n", "!", "漢", "é"])
def test_a_stretch_without_a_seam_is_kept_whole_up_to_the_bound_and_refused_above_it(sign: str) -> None:
    def cut(length: int, read: int) -> list[str]:
        text = "before " + sign * length + "7 after"
        pieces = [text[start : start + read] for start in range(0, len(text), read)]
        return list(split_text_at(pieces, size=2, name="my.txt", max_stretch=60))

    for read in (1, 7, 1000):
        assert max(len(part) for part in cut(50, read)) >= 50
        with pytest.raises(DataError, match=r"^my\.txt .* from character \d+ on, more than 60 .*; put spaces"):
            cut(70, read)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@settings(QUICK, max_examples=40)
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=6), st.integers(1, 50), st.integers(1, 3))
def test_the_file_holds_each_documents_ids_and_an_end_of_text_between_them(
    tmp_path_factory: pytest.TempPathFactory,
    encoding: tiktoken.Encoding,
    documents: list[str],
    size: int,
    workers: int,
) -> None:
    folder = tmp_path_factory.mktemp("documents")
    text, ends = write(folder / "text", "".join(documents).encode()), []
    for document in documents:
        ends.append(len(document.encode()) + (ends[-1] if ends else 0))
    read: list[int] = []
    counts = tokenize_file(
        encoding,
        text,
        folder / "ids.npy",
        ends=ends[:-1],
        advance=read.append,
        workers=workers,
        part_characters=size,
    )
    expected = [i for document in documents for i in [*encoding.encode_ordinary(document), ENDS_AT]][:-1]
    ids = read_tokens(folder / "ids.npy", vocab_size=50257)
    assert ids.dtype == np.uint16
    assert ids.tolist() == expected
    assert (counts.tokens, counts.characters) == (len(expected), sum(map(len, documents)))
    assert sum(read) == ends[-1]


def test_the_file_is_the_one_that_numpy_writes(encoding: tiktoken.Encoding, tmp_path: Path) -> None:
    text = write(tmp_path / "text", b"Every effort moves you. " * 100)
    tokenize_file(encoding, text, tmp_path / "ids.npy", part_characters=10)
    np.save(tmp_path / "numpy.npy", np.array(encoding.encode_ordinary(text.read_text()), np.uint16))
    assert (tmp_path / "ids.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_no_more_parts_are_read_than_threads_can_use(encoding: tiktoken.Encoding) -> None:
    read: list[int] = []

    def batches():
        for number in range(100):
            read.append(number)
            yield [f"{number}"]

    ids = encode_in_order(encoding, batches(), 2)
    next(ids)
    assert len(read) == 5
    assert len(list(ids)) == 99


def test_a_text_with_a_fault_leaves_no_file(encoding: tiktoken.Encoding, tmp_path: Path) -> None:
    text, tokens = write(tmp_path / "text", b"abc " * 100_000 + b"\xff"), tmp_path / "tokens/ids.npy"
    with pytest.raises(DataError, match=r"not UTF-8 .* 0xff at offset 400000;"):
        tokenize_file(encoding, text, tokens)
    assert list(tokens.parent.iterdir()) == []


def test_more_white_space_than_tiktoken_can_take_is_refused_in_words(
    encoding: tiktoken.Encoding, tmp_path: Path
) -> None:
    text = write(tmp_path / "text", b"a" + b" " * (MAX_STRETCH - 10) + b"b")
    with pytest.raises(DataError, match=f"tiktoken can't encode {MAX_STRETCH - 9} characters"):
        tokenize_file(encoding, text, tmp_path / "ids.npy")


def test_threads_are_as_many_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert tokenize.num_cpus() == 3
