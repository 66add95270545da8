"""A token stream becomes rows."""

import numpy as np
import pytest

from reprogpt.corpus.windows import windows
from reprogpt.errors import DataError


def rows(num_tokens: int, *, context_length: int, stride: int) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of the tokens 0, 1, 2, …"""
    inputs, targets = windows(np.arange(num_tokens, dtype=np.uint16), context_length=context_length, stride=stride)
    assert inputs.dtype == targets.dtype == np.int64
    return inputs[:].tolist(), targets[:].tolist()


def test_rows_start_every_stride_tokens_and_targets_come_one_later() -> None:
    assert rows(7, context_length=3, stride=2) == ([[0, 1, 2], [2, 3, 4]], [[1, 2, 3], [3, 4, 5]])


def test_stride_one_starts_a_row_at_every_token() -> None:
    assert rows(6, context_length=3, stride=1)[0] == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]


def test_stride_of_a_row_repeats_no_token_and_skips_none() -> None:
    assert rows(7, context_length=3, stride=3) == ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])


def test_tokens_that_fill_no_row_are_dropped() -> None:
    assert rows(6, context_length=3, stride=3) == ([[0, 1, 2]], [[1, 2, 3]])


def test_one_token_more_than_a_row_is_enough() -> None:
    assert rows(4, context_length=3, stride=3) == ([[0, 1, 2]], [[1, 2, 3]])


@pytest.mark.parametrize("num_tokens", [0, 1, 3])
def test_too_short_a_stream_says_how_many_there_are_and_how_many_it_takes(num_tokens: int) -> None:
    with pytest.raises(DataError, match=f"^{num_tokens} tokens cannot .*context_length=3 needs at least 4"):
        rows(num_tokens, context_length=3, stride=1)


@pytest.mark.parametrize("num_tokens", range(4, 12))
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_number_of_rows_is_the_documented_one(num_tokens: int, stride: int) -> None:
    assert len(rows(num_tokens, context_length=3, stride=stride)[0]) == -(-(num_tokens - 3) // stride)
