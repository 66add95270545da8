"""Encoding the parts of a text gives the token ids of the whole."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reprogpt.data.token_boundaries import _BOUNDARY, split_at_token_boundaries
from reprogpt.data.tokens import load_encoding
from tests.data.texts import QUICK, SIGNS, TEXTS, WORDS


@pytest.fixture(scope="module")
def encoding() -> tiktoken.Encoding:
    return load_encoding("gpt2")


def split(text: str, size: int, read: int) -> list[str]:
    """`text`, read `read` characters at a time, split into parts."""
    pieces = [text[start : start + read] for start in range(0, len(text), read)]
    return list(split_at_token_boundaries(pieces, size=size))


@settings(QUICK, max_examples=400)
@given(TEXTS, st.integers(1, 50), st.integers(1, 50))
@example("a\n\nb", 1, 1)
@example("a\n \u3000b \x1c \x85\xa0c", 1, 1)
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


@pytest.mark.parametrize("character", ["a", "!", "漢", "é", "'"])
@pytest.mark.parametrize("read", [1, 7, 1000])
def test_a_stretch_without_a_split_point_is_one_part(character: str, read: int) -> None:
    text = "before " + character * 70 + " after"
    pieces = [text[start : start + read] for start in range(0, len(text), read)]
    parts = list(split_at_token_boundaries(pieces, size=2))
    assert "".join(parts) == text
    assert max(len(part) for part in parts) == 71


def test_a_long_stretch_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting:
        characters = 0

        def search(self, text: str, start: int) -> re.Match[str] | None:
            self.characters += len(text) - start
            return _BOUNDARY.search(text, start)

        def finditer(self, text: str, start: int, end: int) -> Iterator[re.Match[str]]:
            self.characters += end - start
            return _BOUNDARY.finditer(text, start, end)

    counting = Counting()
    monkeypatch.setattr("reprogpt.data.token_boundaries._BOUNDARY", counting)
    assert len(list(split_at_token_boundaries(["a" * 100] * 1000, size=100))) == 1
    assert counting.characters < 3 * 100_000
