"""Encoding the parts of a text gives the token ids of the whole."""

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reprogpt.corpus.split_points import split_text_at
from reprogpt.corpus.tokens import load_encoding
from reprogpt.errors import DataError
from tests.corpus.texts import QUICK, SIGNS, TEXTS, WORDS


@pytest.fixture(scope="module")
def encoding() -> tiktoken.Encoding:
    return load_encoding("gpt2")


def split(text: str, size: int, read: int) -> list[str]:
    """`text`, read `read` characters at a time, split into parts."""
    pieces = [text[start : start + read] for start in range(0, len(text), read)]
    return list(split_text_at(pieces, size=size, name="text"))


@settings(QUICK, max_examples=400)
@given(TEXTS, st.integers(1, 50), st.integers(1, 50))
@example("a\n\nb", 1, 1)
@example("it's 12ab, x  \n y 'll '", 1, 3)
def test_parts_of_any_size_give_the_ids_of_the_whole(
    encoding: tiktoken.Encoding, text: str, size: int, read: int
) -> None:
    parts = split(text, size, read)
    assert "".join(parts) == text
    assert [i for part in parts for i in encoding.encode_ordinary(part)] == encoding.encode_ordinary(text)


def test_every_size_of_part_gives_the_ids_of_the_whole(encoding: tiktoken.Encoding) -> None:
    text = "".join(np.random.default_rng(0).choice([*SIGNS, *WORDS, " ", "e", "t"], 3000))
    whole = encoding.encode_ordinary(text)
    for size in range(1, 51):
        parts = split(text, size, 64)
        assert len(parts) > 10
        assert [i for part in parts for i in encoding.encode_ordinary(part)] == whole, size


def test_parts_have_about_the_size_asked_for() -> None:
    parts = split("word " * 1000, 100, 700)
    assert {len(part) for part in parts[1:-1]} == {100}


@pytest.mark.parametrize("character", ["a", " ", "\n", "!", "漢", "é"])
def test_a_stretch_without_a_split_point_is_one_part_up_to_the_bound_and_refused_above_it(character: str) -> None:
    def parts(length: int, read: int) -> list[str]:
        text = "before " + character * length + "7 after"
        pieces = [text[start : start + read] for start in range(0, len(text), read)]
        return list(split_text_at(pieces, size=2, name="my.txt", max_stretch=60))

    for read in (1, 7, 1000):
        assert max(len(part) for part in parts(50, read)) >= 50
        with pytest.raises(DataError, match=r"^my\.txt .* from character \d+ on, more than 60 .*; put spaces"):
            parts(70, read)
