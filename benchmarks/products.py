"""The matrix products of one training step: how many operations they are, and how fast they can be made alone.

Their rate is the limit that a step is held against: no step can take less time than its products.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from reprogpt.params.train import TrainParams

REPEATS = 5


def weight_shapes(params: TrainParams) -> dict[tuple[int, int], int]:
    """The weights that rows are multiplied by, (out, in), and how many there are of each shape."""
    width, layers = params.emb_dim, params.n_layers
    square = {(width, width): 4 * layers}  # query, key, value, output projection
    return square | {(4 * width, width): layers, (width, 4 * width): layers, (params.vocab_size, width): 1}


def flops_of_a_step(params: TrainParams) -> int:
    """Multiplications and additions of a step's products.

    6 x weights x tokens: each weight is multiplied and added once forward and twice backward. Attention: 12 x
    layers x rows x T^2 x emb_dim, the whole square, as the plain formulation computes it. Looking up embeddings
    counts nothing.
    """
    weights = sum(out * into * count for (out, into), count in weight_shapes(params).items())
    tokens = params.batch_size * params.context_length
    attention = 12 * params.n_layers * params.batch_size * params.context_length**2 * params.emb_dim
    return 6 * weights * tokens + attention


def seconds_of_products(params: TrainParams, kind: torch.dtype) -> float:
    """How long a step's products take one after the other, as torch now makes them.

    The fastest of REPEATS each: a limit is what this machine can do when it is left alone.
    """
    tokens = params.batch_size * params.context_length
    total = 0.0
    for (out, into), count in weight_shapes(params).items():
        rows, gradient, weight = (torch.randn(shape).to(kind) for shape in ((tokens, into), (tokens, out), (out, into)))
        pairs = [(rows, weight.T), (gradient, weight), (gradient.T, rows)]  # forward, and two backward
        total += count * sum(_seconds(torch.mm, *pair) for pair in pairs)
    heads, length, width = params.batch_size * params.n_heads, params.context_length, params.emb_dim // params.n_heads
    thin, square = torch.randn(heads, length, width).to(kind), torch.randn(heads, length, length).to(kind)
    scores, context = _seconds(torch.bmm, thin, thin.transpose(1, 2)), _seconds(torch.bmm, square, thin)
    return total + params.n_layers * (2 * scores + 4 * context)


def _seconds(product: Callable[..., Tensor], left: Tensor, right: Tensor) -> float:
    # Into memory that is there: getting it takes time that is not the product's.
    out = product(left, right)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        product(left, right, out=out)
        times.append(time.perf_counter() - started)
    return min(times)
