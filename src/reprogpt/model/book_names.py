"""Weights under the names that the book's own program saves, as names and shapes of this model."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from reprogpt.model.gpt import GPTConfig, GPTModel

EMBEDDINGS, POSITIONS, HEAD = "tok_emb.weight", "pos_emb.weight", "out_head.weight"
_MASK = re.compile(r"trf_blocks\.\d+\.att\.mask")  # the book's causal mask, a buffer
_NORM = {"scale": "weight", "shift": "bias"}  # parameters of the book's LayerNorm -> of torch's


class UnfitTensorError(Exception):
    """What is wrong with a tensor, as the second half of a sentence."""


def are_the_books(stored: Mapping[str, Tensor]) -> bool:
    """Whether the names are the book's, not GPT-2's."""
    return EMBEDDINGS in stored


def from_book(stored: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The tensors by GPTModel's names, float32, without masks and positions beyond context_length.

    Raises UnfitTensorError for a tensor that is missing, unknown, or of another shape or type than config asks for.
    """
    named = {_own_name(name): tensor for name, tensor in stored.items() if not _MASK.fullmatch(name)}
    with torch.device("meta"):  # shapes only
        wanted = GPTModel(config).state_dict()
    positions = named.get(POSITIONS)
    if positions is not None and positions.ndim == 2 and len(positions) > config.context_length:
        named[POSITIONS] = positions[: config.context_length].clone()
    for name in sorted(wanted.keys() ^ named.keys()):
        fault = "lacks tensor" if name in wanted else "has an unknown tensor"
        advice = "; set qkv_bias to " + str(name in named).lower() if ".att.W_" in name and "bias" in name else ""
        raise UnfitTensorError(f"{fault} {name}{advice}")
    for name, tensor in wanted.items():
        if named[name].shape != tensor.shape or not named[name].is_floating_point():
            found = f"{named[name].dtype} {list(named[name].shape)}"
            raise UnfitTensorError(f"has {name} as {found}, but params.yaml asks for floats of {list(tensor.shape)}")
    if config.tie_weights and not torch.equal(named[HEAD], named[EMBEDDINGS]):
        raise UnfitTensorError(f"has another {HEAD} than {EMBEDDINGS}; set tie_weights to false")
    return {name: tensor.float() for name, tensor in named.items()}


def _own_name(name: str) -> str:
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_NORM.get(last, last)}"
