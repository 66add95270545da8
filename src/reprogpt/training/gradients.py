"""Statistics of a step's gradients, and the divisor that clips them."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def gradient_stats(parameters: Iterable[nn.Parameter], max_norm: float | None) -> tuple[Tensor, Tensor | None]:
    """Statistics of all gradients, and the divisor that reduces their joint L2 norm to max_norm.

    The statistics are float32 (3,), on the device: max_grad, the largest signed entry (the book's
    find_highest_gradient); max_grad_clipped, the same after clipping; grad_norm, the L2 norm before clipping.
    The divisor is a float32 scalar, at least 1; None if max_norm is None: nothing is clipped.
    Gradients are not changed: the optimizer divides them as it reads them, which saves a pass over memory.
    Clipping follows torch.nn.utils.clip_grad_norm_: factor min(1, max_norm / (grad_norm + 1e-6)).
    Sharded gradients are reduced over all processes, which must all call this.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    is_sharded = isinstance(grads[0], DTensor)
    if is_sharded:
        local_grads = [grad.to_local() for grad in grads]  # type: ignore[attr-defined]
        grads = [grad for grad in local_grads if grad.numel()]
    max_grad = torch.stack(torch._foreach_max(grads)).max()
    grad_norm = nn.utils.get_total_norm(grads)
    if is_sharded:
        dist.all_reduce(max_grad, dist.ReduceOp.MAX)
        squared_norm = grad_norm.square()
        dist.all_reduce(squared_norm)
        grad_norm = squared_norm.sqrt()
    if max_norm is None:
        return torch.stack([max_grad, max_grad, grad_norm]), None
    # Rounding is monotonic and every entry is divided by the same positive number, so the largest entry stays the
    # largest: its quotient is the maximum after clipping, to the bit, without a second pass.
    divisor = ((grad_norm + 1e-6) / max_norm).clamp(min=1.0)
    return torch.stack([max_grad, max_grad / divisor, grad_norm]), divisor
