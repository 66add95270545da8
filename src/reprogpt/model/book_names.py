"""Weights under the names that the book's own program saves, under this model's names."""

import re
from collections.abc import Mapping

from torch import Tensor

EMBEDDINGS, POSITIONS, HEAD = "tok_emb.weight", "pos_emb.weight", "out_head.weight"
QUERY_BIAS = "trf_blocks.0.att.W_query.bias"
_MASK = re.compile(r"trf_blocks\.\d+\.att\.mask")  # the book's causal mask, a buffer
_NORM = {"scale": "weight", "shift": "bias"}  # parameters of the book's LayerNorm -> of torch's


def from_book(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under GPTModel's names, without causal masks."""
    return {_our_name(name): tensor for name, tensor in stored.items() if not _MASK.fullmatch(name)}


def _our_name(name: str) -> str:
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_NORM.get(last, last)}"
