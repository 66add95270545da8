"""Matrix products whose bits don't depend on the processor or its cores, for `numerics: portable`.

torch's own library, MKL, chooses its kernels by the processor's maker, whatever its settings ask
for. Here numpy's OpenBLAS multiplies instead: it takes the kernels that OPENBLAS_CORETYPE names, on
every processor. Left to itself it would also divide a product by the number of cores, and other
divisions give other last bits. So it runs on one thread, and every product is cut here, in the same
way everywhere, into parts that threads of ours work on.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

# Multiplications in a part: about a millisecond's work, for which waking a thread is a small price.
PART_SIZE = 64_000_000
MAX_PARTS = 64
MIN_WIDTH = 128  # rows or columns; every part packs the whole other factor, which thin ones would not repay

_routes: list[torch.library.Library] = []  # torch forgets the routing with this object
_pools: list[ThreadPoolExecutor] = []


def route_products_to_numpy(num_threads: int) -> None:
    """From here on products of CPU tensors in this process, forward and backward, are product()."""
    if _routes:
        return
    _pools.append(ThreadPoolExecutor(num_threads))
    _routes.append(torch.library.Library("aten", "IMPL"))  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "Overriding a previously registered kernel": on purpose
        for name, kernel in (("mm", product), ("bmm", product), ("addmm", _addmm), ("baddbmm", _addmm)):
            _routes[0].impl(name, kernel, "CPU", allow_override=True)  # type: ignore[no-untyped-call]


def route_products_to_torch() -> None:
    """The end of route_products_to_numpy; nothing if it was not called."""
    while _routes:
        _routes.pop()._destroy()  # type: ignore[no-untyped-call]
    while _pools:
        _pools.pop().shutdown()


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right: (n, k) and (k, m) -> (n, m), or stacks of b, (b, n, k) and (b, k, m) -> (b, n, m)."""
    out = left.new_empty(*left.shape[:-1], right.shape[-1])
    factors = (left.detach().numpy(), right.detach().numpy(), out.numpy())
    axis, bounds = parts_of(tuple(out.shape), left.shape[-1])
    if len(bounds) == 2:
        np.matmul(factors[0], factors[1], out=factors[2])
    else:
        parts = map(slice, bounds, bounds[1:])
        list(_pools[0].map(lambda part: _multiply(factors, axis, part), parts))
    return out


def parts_of(shape: tuple[int, ...], depth: int) -> tuple[int, list[int]]:
    """How a product is cut: the axis of the output, counted from its end, and the bounds along it.

    shape: of the output, (n, m) or (b, n, m); depth: k. A rule on these numbers alone: with the
    number of threads in it, the bits would depend on them.
    """
    wanted = min(MAX_PARTS, 1 + int(np.prod(shape, dtype=np.int64)) * depth // PART_SIZE)
    if len(shape) == 3 and shape[0] >= wanted:
        axis, num_parts = -3, wanted
    else:
        axis = max((-1, -2), key=lambda axis: shape[axis])
        num_parts = max(1, min(wanted, shape[axis] // MIN_WIDTH))
    return axis, [shape[axis] * part // num_parts for part in range(num_parts + 1)]


def _multiply(factors: tuple[np.ndarray, np.ndarray, np.ndarray], axis: int, part: slice) -> None:
    left, right, out = factors
    if axis == -3:
        np.matmul(left[part], right[part], out=out[part])
    elif axis == -2:
        np.matmul(left[..., part, :], right, out=out[..., part, :])
    else:
        np.matmul(left, right[..., part], out=out[..., part])


def _addmm(term: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    out = product(left, right)
    if alpha != 1:
        out *= alpha
    return out.add_(term, alpha=beta) if beta else out
