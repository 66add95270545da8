"""Cuts a token stream into rows for training and evaluation."""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from reprogpt.data.tokens import release_memory, require_known
from reprogpt.errors import DataError


class Windows:
    """Rows of a token stream, (w, T) int64, each created when it is indexed: rows[index] is a numpy array.

    vocab_size: rows are checked when indexed, and an id that is not below it raises DataError; None: no check.
    """

    def __init__(self, view: np.ndarray, vocab_size: int | None) -> None:
        self._view = view
        self._vocab_size = vocab_size
        # As of the array that indexing everything would return: callers take either.
        self.shape: tuple[int, ...] = view.shape
        self.size = view.size
        self.dtype = np.dtype(np.int64)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        rows: np.ndarray = self._view[index].astype(np.int64)
        release_memory(self._view)  # a pass over a memory-mapped corpus would otherwise end with all of it in memory
        if self._vocab_size is not None:
            require_known(rows, self._vocab_size, "a row of the tokens")
        return rows


def windows(
    ids: np.ndarray, *, context_length: int, stride: int, vocab_size: int | None = None
) -> tuple[Windows, Windows]:
    """Cut a token stream into (input, target) rows, a row every `stride` tokens.

    ids: (n,) token ids, n > context_length; may be memory-mapped, then no row stays in memory once it is copied.
    stride: 1 to context_length. vocab_size: as for Windows.
    Returns two Windows, (w, T) each, T = context_length, w = ceil((n - T) / stride); target[i, j] is the token after
    input[i, j]. All rows are complete: tokens after the last one are dropped.
    Raises DataError if the stream is too short for one row.
    """
    if len(ids) <= context_length:
        raise DataError(
            f"{len(ids)} tokens cannot fill one row: context_length={context_length} needs at least "
            f"{context_length + 1}. Use a longer corpus, another train_ratio or a smaller context_length"
        )
    rows = sliding_window_view(ids, context_length + 1)[::stride]
    return Windows(rows[:, :-1], vocab_size), Windows(rows[:, 1:], vocab_size)
