"""Cuts a token stream into rows for training and evaluation."""

import numpy as np

from reprogpt.data.tokens import Tokens, require_known
from reprogpt.errors import DataError


class Windows:
    """Rows of a token stream, (w, T) int64, each created when it is indexed: rows[index] is a numpy array, (b, T).

    first: of the first row, in the stream. vocab_size: rows are checked when indexed, and an id that is not below it
    raises DataError; None: no check.
    """

    def __init__(self, ids: Tokens, shape: tuple[int, int], *, first: int, stride: int, vocab_size: int | None) -> None:
        self._ids = ids
        self._first = first
        self._stride = stride
        self._vocab_size = vocab_size
        # As of the array that indexing everything would return: callers take either.
        self.shape = shape
        self.size = shape[0] * shape[1]
        self.dtype = np.dtype(np.int64)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        numbers = np.arange(*index.indices(len(self))) if isinstance(index, slice) else index
        rows = np.empty((len(numbers), self.shape[1]), self.dtype)
        for row, start in zip(rows, (self._first + numbers * self._stride).tolist(), strict=True):
            row[:] = self._ids[start : start + self.shape[1]]
        if self._vocab_size is not None:
            require_known(rows, self._vocab_size, "a row of the tokens")
        return rows


def windows(ids: Tokens, *, context_length: int, stride: int, vocab_size: int | None = None) -> tuple[Windows, Windows]:
    """Cut a token stream into (input, target) rows, a row every `stride` tokens.

    ids: (n,) token ids, n > context_length. stride: 1 to context_length. vocab_size: as for Windows.
    Returns two Windows, (w, T) each, T = context_length, w = ceil((n - T) / stride); target[i, j] is the token after
    input[i, j]. All rows are complete: tokens after the last one are dropped.
    Raises DataError if the stream is too short for one row.
    """
    if len(ids) <= context_length:
        raise DataError(
            f"{len(ids)} tokens cannot fill one row: context_length={context_length} needs at least "
            f"{context_length + 1}. Use a longer corpus, another train_ratio or a smaller context_length"
        )
    num_rows = -(-(len(ids) - context_length) // stride)  # rounded up
    inputs, targets = (
        Windows(ids, (num_rows, context_length), first=first, stride=stride, vocab_size=vocab_size) for first in (0, 1)
    )
    return inputs, targets
