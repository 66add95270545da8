"""fp32 matrix products whose bits are a definition, whichever library computes them, for `numerics: portable`.

The definition: an entry starts with the added term, or with 0. The terms of the sum are cut into blocks of BLOCK. Each
block is a chain of fused multiply-adds in ascending order that starts at 0. The blocks are added to the entry in
order, each addition rounded to fp32. Batches are the same for each matrix.

MKL and oneDNN keep it, if they are called as here. keeps_definition() checks that at every start.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from reprogpt.numerics.thread_pool import for_each

BLOCK = 192
# Narrower products go through other kernels in MKL, which add in another order.
MIN_SIDE = 16

_aten = torch.ops.aten


@dataclass(frozen=True)
class Library:
    """A library for products, and how it is called.

    fp32_precision: the setting of torch that selects it; "bf16" selects oneDNN, which computes in fp32 all the same.
    num_strips: parts into which a product is divided, one per thread; 1 leaves that to the library.
    adds_in_blocks: whether it divides k of at least 2 * BLOCK into blocks itself, where one call costs less than many.
    """

    name: str
    fp32_precision: str
    num_strips: int = 1
    adds_in_blocks: bool = False

    def select(self) -> None:
        """Make torch use this library for products on the CPU."""
        torch.backends.mkldnn.matmul.fp32_precision = self.fp32_precision  # type: ignore[attr-defined]

    def matmul(self, left: Tensor, right: Tensor, term: Tensor | None = None) -> Tensor:
        """term + left @ right: (m, k) and (k, n) -> (m, n), or batches, (b, m, k) and (b, k, n) -> (b, m, n).

        term: broadcastable to the result; None is no term.
        """
        num_rows, num_columns = left.shape[-2], right.shape[-1]
        left, right = _widen(left, -2), _widen(right, -1)
        out = left.new_empty(*left.shape[:-1], right.shape[-1])
        if term is not None:
            out[..., :num_rows, :num_columns] = term
        elif left.shape[-1] == 0:
            out.zero_()
        has_term = term is not None
        if self.num_strips == 1:
            self._accumulate(out, left, right, has_term)
        elif out.dim() == 3 or out.shape[0] >= out.shape[1]:

            def compute_rows(strip: slice) -> None:  # or matrices of the batch
                right_strip = right[strip] if out.dim() == 3 else right
                self._accumulate(out[strip], left[strip], right_strip, has_term)

            least = 1 if out.dim() == 3 else MIN_SIDE
            for_each(compute_rows, split_evenly(len(out), self.num_strips, least))
        else:

            def compute_columns(strip: slice) -> None:
                self._accumulate(out[:, strip], left, right[:, strip], has_term)

            for_each(compute_columns, split_evenly(out.shape[1], self.num_strips, MIN_SIDE))
        if out.shape[-2:] == (num_rows, num_columns):
            return out
        return out[..., :num_rows, :num_columns].contiguous()

    def _accumulate(self, out: Tensor, left: Tensor, right: Tensor, has_term: bool) -> None:
        """Add the product to out, or write it there if out has no term yet."""
        write, add = (_aten.mm.out, _aten.addmm.out) if out.dim() == 2 else (_aten.bmm.out, _aten.baddbmm.out)
        depth = left.shape[-1]
        length = depth if self.adds_in_blocks and depth >= 2 * BLOCK else BLOCK
        for start in range(0, depth, length):
            left_block = left[..., start : start + length]
            right_block = right[..., start : start + length, :]
            if has_term or start:
                add(out, left_block, right_block, out=out)
            else:
                write(left_block, right_block, out=out)


def split_evenly(length: int, num_parts: int, least: int = 1) -> list[slice]:
    """At most num_parts slices of about equal length, none shorter than `least` unless length is."""
    num_parts = max(1, min(num_parts, length // least))
    bounds = [length * part // num_parts for part in range(num_parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def _widen(matrix: Tensor, axis: int) -> Tensor:
    """The matrix, with zeros appended along the axis if it has fewer than MIN_SIDE rows or columns there."""
    missing = MIN_SIDE - matrix.shape[axis]
    if missing <= 0:
        return matrix
    padding = (0, 0, 0, missing) if axis == -2 else (0, missing)
    return torch.nn.functional.pad(matrix, padding)


def choose_library(*, prefers_onednn: bool, num_threads: int) -> Library | None:
    """The first library that keeps the definition on this processor, selected; None if none does.

    prefers_onednn: whether oneDNN is the faster one, to be tried first.
    """
    mkl = Library("MKL", "none", num_strips=num_threads)
    candidates = [replace(mkl, adds_in_blocks=True), mkl]
    if prefers_onednn:
        candidates.insert(0, Library("oneDNN", "bf16"))
    for library in candidates:
        library.select()
        if keeps_definition(library):
            return library
    return None


# (m, n, k) and the number of batches, 0 for none: narrow, of odd sides, and those of a model's layers and heads.
_CHECKED_SHAPES = [
    ((1, 70, 64), 0),
    ((5, 3, 200), 0),
    ((17, 198, 400), 0),
    ((198, 64, 509), 0),
    ((253, 256, 64), 3),
    ((512, 768, 768), 0),
    ((96, 40, 5000), 0),
]
_CHECKED_ENTRIES = 8  # rows and columns of which the entries are computed, of all that the library computes


def keeps_definition(library: Library) -> bool:
    """Whether the selected library's products of fixed numbers are the definition's, to the bit. Takes 0.1 s."""
    rng = np.random.default_rng(0)
    return all(_is_product_defined(library, rng, *shape) for shape in _CHECKED_SHAPES)


def _is_product_defined(library: Library, rng: np.random.Generator, sides: tuple[int, int, int], batches: int) -> bool:
    num_rows, num_columns, depth = sides
    batch = (batches,) if batches else ()
    left = _numbers(rng, *batch, num_rows, depth)
    right = _numbers(rng, *batch, depth, num_columns)
    term = _numbers(rng, *batch, num_rows, num_columns)
    rows = np.unique(np.linspace(0, num_rows - 1, _CHECKED_ENTRIES).astype(int))
    columns = np.unique(np.linspace(0, num_columns - 1, _CHECKED_ENTRIES).astype(int))
    exact = reference_product(left[..., rows, :], right[..., columns])
    with_term = term[..., rows, :][..., columns]
    with_term = reference_product(left[..., rows, :], right[..., columns], with_term)
    lefts, rights = _both_layouts(left), _both_layouts(right)
    pairs = zip([lefts[0], lefts[0], lefts[1]], [rights[0], rights[1], rights[0]], strict=True)
    for one, other in pairs:
        found = library.matmul(one, other).numpy()[..., rows, :][..., columns]
        if not np.array_equal(found, exact):
            return False
    found = library.matmul(lefts[0], rights[1], torch.from_numpy(term)).numpy()[..., rows, :][..., columns]
    return np.array_equal(found, with_term)


def _numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 multiples of 2^-20 in [-1, 1): products take 40 bits, so float64 holds any sum of few of them exactly."""
    integers = rng.integers(-(2**20), 2**20, shape)
    return (integers / 2**20).astype(np.float32)


def _both_layouts(matrix: np.ndarray) -> tuple[Tensor, Tensor]:
    """The matrix stored by rows, and stored by columns, as a transposed weight is."""
    rows_first = torch.from_numpy(matrix)
    return rows_first, rows_first.mT.contiguous().mT


def reference_product(left: np.ndarray, right: np.ndarray, term: np.ndarray | None = None) -> np.ndarray:
    """The product by its definition, slowly: float32 arrays as for Library.matmul -> float32.

    Exact for numbers of _numbers(): a fused multiply-add is then a sum in float64 that is rounded once.
    """
    num_blocks = -(-left.shape[-1] // BLOCK)
    missing = num_blocks * BLOCK - left.shape[-1]
    # Zeros at the end of the last chain don't change it.
    left = np.pad(left, [(0, 0)] * (left.ndim - 1) + [(0, missing)]).astype(np.float64)
    right = np.pad(right, [(0, 0)] * (right.ndim - 2) + [(0, missing), (0, 0)]).astype(np.float64)
    left = np.moveaxis(left.reshape(*left.shape[:-1], num_blocks, BLOCK), -2, 0)  # (blocks, ..., m, BLOCK)
    right = np.moveaxis(right.reshape(*right.shape[:-2], num_blocks, BLOCK, right.shape[-1]), -3, 0)
    chains = np.zeros((*left.shape[:-1], right.shape[-1]), np.float32)
    for place in range(BLOCK):
        chains = (chains + left[..., place, None] * right[..., place, None, :]).astype(np.float32)
    total = np.zeros_like(chains[0]) if term is None else term.copy()
    for chain in chains:
        total += chain
    return total
