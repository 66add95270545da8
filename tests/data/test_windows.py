"""Rows of a token stream."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from reprogpt.data.tokens import load_encoding, num_bytes, read_tokens, write_tokens
from reprogpt.data.windows import windows
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
def test_a_stream_that_is_too_short_is_refused_with_both_lengths(num_tokens: int) -> None:
    with pytest.raises(DataError, match=f"^{num_tokens} tokens cannot .*context_length=3 needs at least 4"):
        rows(num_tokens, context_length=3, stride=1)


@pytest.mark.parametrize("num_tokens", range(4, 12))
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_number_of_rows_is_the_documented_one(num_tokens: int, stride: int) -> None:
    assert len(rows(num_tokens, context_length=3, stride=stride)[0]) == -(-(num_tokens - 3) // stride)


def resident_bytes(kind: str) -> int:
    """Resident memory of this process now: RssFile, of mapped files, or RssAnon, the rest."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux reports resident memory")
def test_a_pass_over_a_file_leaves_none_of_it_in_memory(tmp_path: Path) -> None:
    num_tokens = 32_000_001
    parts = (np.arange(1_000_000, dtype=np.uint16) % 50257 for _ in range(32))
    write_tokens(tmp_path / "ids.npy", chain(parts, [np.zeros(1, np.uint16)]), dtype=np.dtype(np.uint16))
    before = {kind: resident_bytes(kind) for kind in ("RssFile", "RssAnon")}
    ids = read_tokens(tmp_path / "ids.npy", vocab_size=50257)
    inputs, targets = windows(ids, context_length=1000, stride=1000, vocab_size=50257)
    for start in range(0, len(inputs), 1000):
        taken = inputs[start : start + 1000], targets[np.arange(start, start + 1000)]
        assert (taken[0][:, 1:] == taken[1][:, :-1]).all()
    assert num_bytes(load_encoding("gpt2"), ids) > num_tokens
    after = {kind: resident_bytes(kind) for kind in before}
    assert after["RssFile"] - before["RssFile"] < 16_000_000  # of 64 MB
    assert after["RssAnon"] - before["RssAnon"] < 60_000_000  # rows of 16 MB at a time, of 256 MB


def test_an_id_outside_the_vocabulary_is_refused_where_its_row_is_taken() -> None:
    inputs, targets = windows(np.array([1, 2, 3, 9, 4], np.uint16), context_length=2, stride=1, vocab_size=9)
    assert inputs[0:1].tolist() == [[1, 2]]
    with pytest.raises(DataError, match="a row of the tokens holds token id 9, but vocab_size=9 allows 0 to 8"):
        targets[np.array([0, 1])]
