"""The training loss, with output head and cross-entropy fused into one operation that holds one logits buffer.

The logits are the largest tensor of a step, (tokens, vocab_size). As separate operations, head and cross-entropy
hold three tensors of that size: logits, log-probabilities and their gradient. Here the probabilities overwrite the
logits, and the gradient overwrites the probabilities.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reprogpt.model.gpt import GPTModel


class NextTokenLoss(nn.Module):
    """Mean cross-entropy in nats per token: inputs and targets, (B, T) int64 each -> a float32 scalar.

    An nn.Module because DistributedDataParallel wraps modules. compiled: run the transformer under torch.compile.
    """

    def __init__(self, model: GPTModel, *, compiled: bool) -> None:
        super().__init__()
        self.model = model
        self.hidden_states = torch.compile(model.hidden_states) if compiled else model.hidden_states

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden = self.hidden_states(inputs).flatten(0, 1)  # (B, T, D) -> (B T, D)
        return head_loss(hidden, self.model.out_head.weight, targets.flatten())


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of softmax(hidden @ weight.T), in nats per token: a float32 scalar.

    hidden: (N, D), the output head's input. weight: (V, D), the output head's. targets: (N,) int64.
    Equals cross_entropy(linear(hidden, weight), targets) to rounding, gradients too; differentiable once.
    Under autocast, matrix products run in its dtype, everything else in float32.
    """
    loss: Tensor = _HeadLoss.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return loss


class _HeadLoss(torch.autograd.Function):
    """d loss / d logits = (softmax(logits) - one_hot(targets)) / N."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        device_type = hidden.device.type
        dtype = _matmul_dtype(device_type)
        hidden = hidden.to(dtype)
        weight = weight.to(dtype)
        row_indices = torch.arange(len(targets), device=targets.device)
        with torch.autocast(device_type, enabled=False):
            logits = (hidden @ weight.T).float()
            highest = logits.amax(dim=-1)
            target_logits = logits[row_indices, targets]
            torch.softmax(logits, dim=-1, out=logits)
        # log(sum(exp(logits))) = highest - log(largest probability), which is at least 1 / V: exact enough, and
        # finite where the target's own probability underflows.
        losses = highest - logits.amax(dim=-1).log() - target_logits
        logits[row_indices, targets] -= 1
        ctx.save_for_backward(hidden, weight, logits)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, grad_logits = ctx.saved_tensors
        scale = grad_loss / len(hidden)  # applied to the (N, D) factor and result, not to the (N, V) one
        grad_logits = grad_logits.to(weight.dtype)
        grad_hidden = (grad_logits @ weight).float() * scale
        grad_weight = grad_logits.T @ (hidden.float() * scale).to(weight.dtype)
        return grad_hidden, grad_weight.float(), None


def _matmul_dtype(device_type: str) -> torch.dtype:
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return torch.float32
