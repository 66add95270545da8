"""A token stream becomes rows to train and evaluate on."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from reprogpt.errors import DataError


def windows(ids: np.ndarray, *, context_length: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a token stream into (input, target) rows, a row every `stride` tokens.

    ids: (n,) token ids, n > context_length. stride: 1 to context_length.
    Returns two (w, T) int64 arrays, T = context_length, w = ceil((n - T) / stride);
    target[i, j] is the token after input[i, j]. Only whole rows are made: tokens after the
    last one are dropped.
    Raises DataError if the stream is too short for one row.
    """
    if len(ids) <= context_length:
        raise DataError(
            f"{len(ids)} tokens cannot fill one row: context_length={context_length} needs at least "
            f"{context_length + 1}. Use a longer corpus, another train_ratio or a smaller context_length"
        )
    rows = sliding_window_view(ids, context_length + 1)[::stride].astype(np.int64)
    return rows[:, :-1], rows[:, 1:]
