"""The loss that is trained on; the output head and its cross-entropy as one operation, with one buffer for the logits.

Logits are the largest thing that a step makes, (tokens, vocab_size). Apart, head and cross-entropy keep three of
them: logits, log-probabilities, and their gradient. Here the probabilities take the place of the logits, and the
gradient that of the probabilities.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reprogpt.model.gpt import GPTModel


class NextTokenLoss(nn.Module):
    """Mean cross-entropy of rows, in nats per token: inputs and targets, (B, T) int64 each -> a float32 scalar.

    A module, since that is what torch.distributed shares among processes. features: the model's, maybe compiled.
    """

    def __init__(self, model: GPTModel, *, compiled: bool) -> None:
        super().__init__()
        self.model = model
        self.features = torch.compile(model.features) if compiled else model.features

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return head_loss(self.features(inputs).flatten(0, 1), self.model.out_head.weight, targets.flatten())


def head_loss(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of softmax(features @ weight.T), in nats per token: a float32 scalar.

    features: (N, D), what the output head reads. weight: (V, D), the head's. targets: (N,) int64.
    Equals cross_entropy(linear(features, weight), targets) to rounding, gradients too; can be differentiated
    once. Under autocast products are made in its type, the rest in float32.
    """
    loss: Tensor = _HeadLoss.apply(features, weight, targets)  # type: ignore[no-untyped-call]
    return loss


class _HeadLoss(torch.autograd.Function):
    """d loss / d logits = (softmax(logits) - one_hot(targets)) / N."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        kind, rows = _product_type(features.device.type), torch.arange(len(targets), device=targets.device)
        features, weight = features.to(kind), weight.to(kind)
        with torch.autocast(features.device.type, enabled=False):
            logits = (features @ weight.T).float()
            highest, wanted = logits.amax(dim=-1), logits[rows, targets]
            torch.softmax(logits, dim=-1, out=logits)
        # log(sum(exp(logits))) = highest - log(the highest probability), which is at least 1 / V: exact enough,
        # and finite where the target's own probability is too small for a float.
        losses = highest - logits.amax(dim=-1).log() - wanted
        logits[rows, targets] -= 1
        ctx.save_for_backward(features, weight, logits)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None]:
        features, weight, gradient = ctx.saved_tensors
        scale = grad_loss / len(features)  # applied to the narrow factors and results: (N, D), not (N, V)
        gradient = gradient.to(weight.dtype)
        grad_features = (gradient @ weight).float() * scale
        grad_weight = gradient.T @ (features.float() * scale).to(weight.dtype)
        return grad_features, grad_weight.float(), None


def _product_type(device_type: str) -> torch.dtype:
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else torch.float32
