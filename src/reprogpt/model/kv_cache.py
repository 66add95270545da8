"""The key-value cache of one attention layer."""

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """Keys and values of the tokens that a block has read, so that decoding need not compute them again.

    Rows may have different numbers of tokens: shorter ones are padded at the start.
    Shapes: B rows, H heads, S cached positions, padding included, D/H values a head.
    """

    def __init__(self) -> None:
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self.padding: Tensor | None = None  # (B,) int64, positions before each row's first token; None: no padding

    @classmethod
    def stack(cls, caches: Sequence["KVCache"]) -> "KVCache":
        """Stack caches of one row each, with at least one token, into one cache."""
        stacked = cls()
        num_tokens = [cache.num_positions for cache in caches]
        longest = max(num_tokens)
        stacked._keys = _stack([cache._keys for cache in caches], longest)
        stacked._values = _stack([cache._values for cache in caches], longest)
        if min(num_tokens) < longest:
            stacked.padding = longest - torch.tensor(num_tokens, device=stacked._keys.device)
        return stacked

    @property
    def num_positions(self) -> int:
        """Number of cached positions: tokens of the longest row."""
        return 0 if self._keys is None else self._keys.shape[2]

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens, (B, H, T, D/H) each; returns those of all cached positions."""
        if self._keys is not None and self._values is not None:
            keys = torch.cat([self._keys, keys], dim=2)
            values = torch.cat([self._values, values], dim=2)
        self._keys = keys
        self._values = values
        return keys, values

    def attention_mask(self) -> Tensor | None:
        """Which cached positions hold a token: (B, 1, 1, S) bool, or None if all do."""
        if self.padding is None:
            return None
        positions = torch.arange(self.num_positions, device=self.padding.device)
        return (positions >= self.padding[:, None])[:, None, None]

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all but these rows, given by their indices, at least one, and the padding that none of them needs."""
        assert self._keys is not None and self._values is not None
        kept = torch.tensor(rows, device=self._keys.device)
        start = 0
        if self.padding is not None:
            padding = self.padding[kept]
            start = int(padding.min())
            self.padding = padding - start if bool((padding > start).any()) else None
        self._keys = self._keys[kept, :, start:]
        self._values = self._values[kept, :, start:]


def _stack(rows: Sequence[Tensor | None], longest: int) -> Tensor:
    """Rows of (1, H, S_i, D/H) -> (B, H, longest, D/H), with zeros before the shorter ones."""
    padded = []
    for row in rows:
        assert row is not None
        padded.append(torch.nn.functional.pad(row, (0, 0, longest - row.shape[2], 0)))
    return torch.cat(padded)
