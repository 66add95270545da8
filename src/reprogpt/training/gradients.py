"""What is measured of the gradients of one step, and their clipping."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def measure_and_clip(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale all gradients in place so that their joint L2 norm is at most max_norm; None leaves them.

    Returns float32 (3,), still on the device: max_grad, the largest signed entry before clipping (the
    book's find_highest_gradient); max_grad_clipped, the same after; grad_norm, the L2 norm before.
    Scaling follows torch.nn.utils.clip_grad_norm_, factor min(1, max_norm / (grad_norm + 1e-6)).
    """
    parameters = [p for p in parameters if p.grad is not None]
    grads = [p.grad for p in parameters if p.grad is not None]
    max_grad = torch.stack(torch._foreach_max(grads)).max()
    grad_norm = nn.utils.get_total_norm(grads)
    if max_norm is None:
        return torch.stack([max_grad, max_grad, grad_norm])
    nn.utils.clip_grads_with_norm_(parameters, max_norm, grad_norm)
    # Rounding is monotone and every entry is multiplied by one positive factor, so the largest entry
    # stays the largest: its product is the maximum after clipping, to the bit, with no second pass.
    factor = (max_norm / (grad_norm + 1e-6)).clamp(max=1.0)
    return torch.stack([max_grad, max_grad * factor, grad_norm])
