"""Where the text is cut."""

import pytest

from reprogpt.corpus.text import split_text
from reprogpt.errors import DataError


@pytest.mark.parametrize(
    ("train_ratio", "train", "val"), [(0.5, "ab", "cd"), (0.74, "ab", "cd"), (0.75, "abc", "d"), (0.25, "a", "bcd")]
)
def test_text_is_cut_at_the_whole_part_of_ratio_times_characters(train_ratio: float, train: str, val: str) -> None:
    assert split_text("abcd", train_ratio) == (train, val)


def test_cut_counts_characters_not_bytes() -> None:
    assert split_text("“”€\r", 0.5) == ("“”", "€\r")


@pytest.mark.parametrize(("text", "train_ratio"), [("abcd", 0.2), ("a", 0.9), ("", 0.5), ("abcd", 1.0)])
def test_empty_part_is_refused_with_both_lengths(text: str, train_ratio: float) -> None:
    cut = int(train_ratio * len(text))
    message = f"train_ratio={train_ratio} cuts {len(text)} characters into {cut} and {len(text) - cut}"
    with pytest.raises(DataError, match=message):
        split_text(text, train_ratio)
