"""Matrix products whose bits don't depend on the processor or its number of cores, for `numerics: portable`.

torch's MKL chooses its kernels by the processor's vendor, whatever its settings say. Here numpy's OpenBLAS multiplies
instead, with the kernels that OPENBLAS_CORETYPE names on every processor. OpenBLAS would also divide a product by the
number of cores, which changes the last bits. So it runs on one thread, and this module divides each product by a
fixed rule into blocks for its own threads.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

# Multiplications in a block: about a millisecond's work, against which waking a thread costs little.
BLOCK_SIZE = 64_000_000
MAX_BLOCKS = 64
MIN_WIDTH = 128  # rows or columns: OpenBLAS packs the whole other factor for each block, which thin ones don't repay

_libraries: list[torch.library.Library] = []  # torch drops the overrides when this object is deleted
_pools: list[ThreadPoolExecutor] = []


def route_matmul_to_numpy(num_threads: int) -> None:
    """Make matmul() compute all matrix products of CPU tensors in this process, forward and backward."""
    if _libraries:
        return
    _pools.append(ThreadPoolExecutor(num_threads))
    _libraries.append(torch.library.Library("aten", "IMPL"))  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "Overriding a previously registered kernel": on purpose
        for name, kernel in (("mm", matmul), ("bmm", matmul), ("addmm", _addmm), ("baddbmm", _addmm)):
            _libraries[0].impl(name, kernel, "CPU", allow_override=True)  # type: ignore[no-untyped-call]


def restore_torch_matmul() -> None:
    """Undo route_matmul_to_numpy; does nothing if it was not called."""
    while _libraries:
        _libraries.pop()._destroy()  # type: ignore[no-untyped-call]
    while _pools:
        _pools.pop().shutdown()


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """left @ right: (n, k) and (k, m) -> (n, m), or batches, (b, n, k) and (b, k, m) -> (b, n, m)."""
    out = left.new_empty(*left.shape[:-1], right.shape[-1])
    arrays = (left.detach().numpy(), right.detach().numpy(), out.numpy())
    axis, bounds = block_bounds(tuple(out.shape), left.shape[-1])
    if len(bounds) == 2:
        np.matmul(arrays[0], arrays[1], out=arrays[2])
    else:
        blocks = map(slice, bounds, bounds[1:])
        list(_pools[0].map(lambda block: _multiply_block(arrays, axis, block), blocks))
    return out


def block_bounds(shape: tuple[int, ...], depth: int) -> tuple[int, list[int]]:
    """The output axis along which a product is divided, counted from the last, and the block bounds along it.

    shape: the output's, (n, m) or (b, n, m). depth: k. The rule uses these numbers only: if it used the number of
    threads, the bits would depend on it.
    """
    num_multiplications = int(np.prod(shape, dtype=np.int64)) * depth
    num_blocks = min(MAX_BLOCKS, 1 + num_multiplications // BLOCK_SIZE)
    if len(shape) == 3 and shape[0] >= num_blocks:
        axis = -3
    else:
        axis = max((-1, -2), key=lambda axis: shape[axis])
        num_blocks = max(1, min(num_blocks, shape[axis] // MIN_WIDTH))
    return axis, [shape[axis] * block // num_blocks for block in range(num_blocks + 1)]


def _multiply_block(arrays: tuple[np.ndarray, np.ndarray, np.ndarray], axis: int, block: slice) -> None:
    left, right, out = arrays
    if axis == -3:
        np.matmul(left[block], right[block], out=out[block])
    elif axis == -2:
        np.matmul(left[..., block, :], right, out=out[..., block, :])
    else:
        np.matmul(left, right[..., block], out=out[..., block])


def _addmm(term: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    out = matmul(left, right)
    if alpha != 1:
        out *= alpha
    return out.add_(term, alpha=beta) if beta else out
