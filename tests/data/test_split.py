"""Splitting a text by characters."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprogpt.data import text as module
from reprogpt.data.split import cut_position, split_file
from reprogpt.errors import DataError


@pytest.mark.parametrize(("train_ratio", "cut"), [(0.5, 2), (0.74, 2), (0.75, 3), (0.25, 1)])
def test_the_cut_is_the_integer_part_of_ratio_times_characters(train_ratio: float, cut: int) -> None:
    assert cut_position(4, train_ratio) == cut


def test_the_split_counts_characters_not_bytes(tmp_path: Path) -> None:
    raw, train, val = (tmp_path / name for name in ("raw", "train", "val"))
    raw.write_bytes("“”€\r".encode())
    assert split_file(raw, train, val, train_ratio=0.5) == 6
    assert (train.read_bytes().decode(), val.read_bytes().decode()) == ("“”", "€\r")


@pytest.mark.parametrize(("num_characters", "train_ratio"), [(4, 0.2), (1, 0.9), (0, 0.5), (4, 1.0)])
def test_an_empty_part_is_refused_with_both_lengths(num_characters: int, train_ratio: float) -> None:
    cut = int(train_ratio * num_characters)
    message = f"train_ratio={train_ratio} cuts {num_characters} characters into {cut} and {num_characters - cut}"
    with pytest.raises(DataError, match=message):
        cut_position(num_characters, train_ratio)


@settings(deadline=None, database=None, derandomize=True, max_examples=60)
@given(st.text("a\r\n“é漢🙂", min_size=2, max_size=30).filter(str.strip), st.floats(0.01, 0.99), st.integers(1, 9))
def test_every_byte_is_in_one_of_the_parts(
    tmp_path_factory: pytest.TempPathFactory, text: str, train_ratio: float, piece_bytes: int
) -> None:
    raw, train, val = (tmp_path_factory.getbasetemp() / f"{name}.txt" for name in ("raw", "train", "val"))
    raw.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", piece_bytes)
        expected = int(train_ratio * len(text))
        if not expected:
            with pytest.raises(DataError, match="neither part may be empty"):
                split_file(raw, train, val, train_ratio=train_ratio)
            return
        cut = split_file(raw, train, val, train_ratio=train_ratio)
    assert (train.read_bytes().decode(), val.read_bytes().decode()) == (text[:expected], text[expected:])
    assert train.stat().st_size == cut
