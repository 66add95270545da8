"""What is measured of the gradients of one step, and how much they are to be scaled down."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def measure(parameters: Iterable[nn.Parameter], max_norm: float | None) -> tuple[Tensor, Tensor | None]:
    """Sizes of all gradients, and the divisor that brings their joint L2 norm down to max_norm.

    Sizes are float32 (3,), still on the device: max_grad, the largest signed entry (the book's
    find_highest_gradient); max_grad_clipped, the same once divided; grad_norm, the L2 norm before. The
    divisor is a float32 scalar, at least 1; None where max_norm is: nothing is clipped. Gradients stay as they are:
    the optimizer divides on its way through them, which saves a pass.
    Clipping follows torch.nn.utils.clip_grad_norm_, factor min(1, max_norm / (grad_norm + 1e-6)).
    Of sharded gradients every process measures its part, and all learn the sizes of the whole.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    sharded = isinstance(grads[0], DTensor)
    if sharded:
        grads = [part for grad in grads if (part := grad.to_local()).numel()]  # type: ignore[attr-defined]
    max_grad = torch.stack(torch._foreach_max(grads)).max()
    grad_norm = nn.utils.get_total_norm(grads)
    if sharded:
        dist.all_reduce(max_grad, dist.ReduceOp.MAX)
        square = grad_norm.square()
        dist.all_reduce(square)
        grad_norm = square.sqrt()
    if max_norm is None:
        return torch.stack([max_grad, max_grad, grad_norm]), None
    # Rounding is monotone and every entry is divided by one positive number, so the largest entry
    # stays the largest: its quotient is the maximum after clipping, to the bit, with no second pass.
    divisor = ((grad_norm + 1e-6) / max_norm).clamp(min=1.0)
    return torch.stack([max_grad, max_grad / divisor, grad_norm]), divisor
