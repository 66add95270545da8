"""The operations besides matrix products whose bits torch would make depend on the processor or its threads.

Each is torch's own kernel, called on parts whose bounds depend only on the shape, so any number of threads gives the
same bits; log has a formula here, since torch leaves it to MKL, whose functions differ by the processor's maker.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reprogpt.numerics.portable_matmul import Library
from reprogpt.numerics.thread_pool import for_each

# Entries of one part of an elementwise operation.
PART = 1 << 16
# torch rounds entries that fill no whole vector by scalar code: parts are filled up to a multiple of this, which is
# a multiple of each vector's length.
VECTOR_MULTIPLE = 64
NORM_ROWS = 64
SUM_COLUMNS = 128

_aten = torch.ops.aten
_libraries: list[torch.library.Library] = []  # torch drops the overrides when this object is deleted


def install_kernels(products: Library) -> None:
    """Replace torch's CPU kernels in this process by those of this module, with products by the given library."""
    if _libraries:
        return

    def mm(left: Tensor, right: Tensor) -> Tensor:
        return products.matmul(left, right)

    def addmm(term: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        if (beta, alpha) == (1, 1):
            return products.matmul(left, right, term)
        out = products.matmul(left, right)
        if alpha != 1:
            out *= alpha
        return out.add_(term, alpha=beta) if beta else out

    kernels: dict[str, Callable[..., Any]] = {
        "mm": mm,
        "bmm": mm,
        "addmm": addmm,
        "gelu": _gelu,
        "gelu_backward": _gelu_backward,
        "native_layer_norm_backward": _layer_norm_backward(),
        "_softmax_backward_data": _softmax_backward,
        "sum.dim_IntList": _sum,
        "log": _log,
    }
    _libraries.append(torch.library.Library("aten", "IMPL"))  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "Overriding a previously registered kernel": on purpose
        for name, kernel in kernels.items():
            _libraries[0].impl(name, kernel, "CPU", allow_override=True)  # type: ignore[no-untyped-call]


def _parts(length: int, size: int) -> list[slice]:
    """Slices of `size`, the last one shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _gelu(values: Tensor, *, approximate: str = "none") -> Tensor:
    def kernel(part: Tensor, out: Tensor) -> None:
        _aten.gelu.out(part, approximate=approximate, out=out)

    return _elementwise(kernel, values)


def _gelu_backward(grad: Tensor, values: Tensor, *, approximate: str = "none") -> Tensor:
    def kernel(grad_part: Tensor, part: Tensor, out: Tensor) -> None:
        _aten.gelu_backward.grad_input(grad_part, part, approximate=approximate, grad_input=out)

    return _elementwise(kernel, grad, values)


def _elementwise(kernel: Callable[..., None], *tensors: Tensor) -> Tensor:
    """kernel(*parts, out) on parts of tensors of equal shape; returns the whole out."""
    flat = [tensor.contiguous().view(-1) for tensor in tensors]
    out = torch.empty_like(flat[0])

    def compute(part: slice) -> None:
        inputs = [tensor[part] for tensor in flat]
        num_whole = len(inputs[0]) // VECTOR_MULTIPLE * VECTOR_MULTIPLE
        if num_whole:
            kernel(*(values[:num_whole] for values in inputs), out[part][:num_whole])
        num_left = len(inputs[0]) - num_whole
        if num_left:
            padding = (0, VECTOR_MULTIPLE - num_left)
            last = [torch.nn.functional.pad(values[num_whole:], padding) for values in inputs]
            last_out = torch.empty_like(last[0])
            kernel(*last, last_out)
            out[part][num_whole:] = last_out[:num_left]

    for_each(compute, _parts(len(out), PART))
    return out.view(tensors[0].shape)


def _layer_norm_backward() -> Callable[..., tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """torch's kernel on NORM_ROWS rows at a time, whose gradients of weight and bias are added in order."""
    # Fetched before it is replaced: unlike the others, it has no variant that calls the original kernel.
    original = torch.library.get_kernel("aten::native_layer_norm_backward", "CPU")
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def backward(
        grad: Tensor,
        values: Tensor,
        normalized_shape: Sequence[int],
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        output_mask: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        width = math.prod(normalized_shape)
        grad_rows = grad.contiguous().view(-1, width)
        rows = values.contiguous().view(-1, width)
        means, rstds = mean.reshape(-1), rstd.reshape(-1)
        grad_values = torch.empty_like(rows) if output_mask[0] else None
        parts = _parts(len(rows), NORM_ROWS)
        partial_sums: list[tuple[Tensor, Tensor]] = [None] * len(parts)  # type: ignore[list-item]

        def compute(index: int) -> None:
            part = parts[index]
            statistics = (means[part], rstds[part], weight, bias)
            arguments = (grad_rows[part], rows[part], list(normalized_shape), *statistics, list(output_mask))
            grad_part, *sums = original.call_boxed(key, *arguments)
            if grad_values is not None:
                grad_values[part] = grad_part
            partial_sums[index] = tuple(sums)

        for_each(compute, range(len(parts)))
        grad_weight, grad_bias = (
            _add_in_order(list(sums)) if is_wanted else None
            for is_wanted, sums in zip(output_mask[1:], zip(*partial_sums, strict=True), strict=True)
        )
        return (None if grad_values is None else grad_values.view(values.shape)), grad_weight, grad_bias

    return backward


def _add_in_order(tensors: list[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def _softmax_backward(grad: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
    """Row by row, as torch does on one thread: on several, it takes other code if the rows fill no whole vectors."""
    assert dim in (-1, output.dim() - 1)
    length = output.shape[-1]
    grad_rows = grad.contiguous().view(-1, length)
    rows = output.contiguous().view(-1, length)
    out = torch.empty_like(rows)

    def compute(part: slice) -> None:
        _aten._softmax_backward_data.out(grad_rows[part], rows[part], -1, input_dtype, grad_input=out[part])

    for_each(compute, _parts(len(rows), max(1, PART // length)))
    return out.view(output.shape)


def _sum(
    values: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Of rows, which is a bias's gradient: SUM_COLUMNS at a time. Other sums are torch's own."""
    if values.dim() == 2 and list(dim or []) == [0] and values.dtype == torch.float32 and dtype in (None, values.dtype):
        out = values.new_empty(values.shape[1])

        def compute(part: slice) -> None:
            _aten.sum.IntList_out(values[:, part], [0], out=out[part])

        for_each(compute, _parts(len(out), SUM_COLUMNS))
        return out[None] if keepdim else out
    if dtype is None:
        dtype = values.dtype if values.dtype.is_floating_point else torch.int64
    out = values.new_empty(0, dtype=dtype)
    return _aten.sum.IntList_out(values, dim, keepdim, dtype=dtype, out=out)  # type: ignore[no-any-return]


def _log(values: Tensor) -> Tensor:
    """By additions, multiplications and divisions in float64, which every processor rounds in the same way.

    log(m 2^e) = e log 2 + 2 artanh(z), z = (m - 1) / (m + 1), with m from sqrt(1/2) to sqrt(2); |z| is below 0.172, so
    the first term that is left out, z^27 / 27, is below 1e-22.
    """
    mantissa, exponent = torch.frexp(values.double())  # mantissa from 1/2 to 1
    is_small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(is_small, mantissa * 2, mantissa)
    exponent = exponent.double() - is_small.double()
    z = (mantissa - 1) / (mantissa + 1)
    square = z * z
    series = torch.zeros_like(z)
    for power in range(25, 0, -2):
        series = series * square + 1 / power
    result = series * z * 2 + exponent * math.log(2)
    result = torch.where(values > 0, result, torch.where(values == 0, -torch.inf, torch.nan))
    result = torch.where(values == torch.inf, torch.inf, result)
    return result.to(values.dtype if values.is_floating_point() else torch.float32)
