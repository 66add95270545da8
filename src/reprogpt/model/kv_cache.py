"""The key-value cache of one attention layer."""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of the tokens that one block has read, so that decoding need not compute them again."""

    def __init__(self) -> None:
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """How many tokens are cached."""
        return 0 if self._keys is None else self._keys.shape[2]

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens, (B, H, T, D/H) each; returns those of all cached tokens."""
        if self._keys is not None and self._values is not None:
            keys = torch.cat([self._keys, keys], dim=2)
            values = torch.cat([self._values, values], dim=2)
        self._keys = keys
        self._values = values
        return keys, values
