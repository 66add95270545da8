"""Losses over rows of a split, and the metrics that follow from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional

from reprogpt.data.windows import Windows
from reprogpt.errors import NonFiniteError
from reprogpt.model.gpt import GPTModel
from reprogpt.model.loss_head import head_metrics
from reprogpt.numerics.device import Numerics

IdRows = np.ndarray | Windows


@dataclass(frozen=True)
class LossSums:
    """Sums over predicted tokens. Ratios are computed last, so a short last batch has the right weight.

    loss_sum: cross-entropy in nats, summed over num_tokens tokens. num_correct: tokens whose logit was the largest.
    """

    loss_sum: float
    num_correct: int
    num_tokens: int

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token."""
        return self.loss_sum / self.num_tokens

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite if that overflows."""
        return math.exp(self.loss) if self.loss < 709 else math.inf

    @property
    def accuracy(self) -> float:
        """Share of tokens whose logit was the largest, 0 to 1."""
        return self.num_correct / self.num_tokens

    def bits_per_byte(self, num_bytes: int) -> float:
        """Summed loss in bits per byte of the text that the predicted tokens encode."""
        return self.loss_sum / math.log(2) / num_bytes


@torch.no_grad()
def sum_losses(model: GPTModel, inputs: IdRows, targets: IdRows, *, batch_size: int, numerics: Numerics) -> LossSums:
    """Sum the losses of all rows in eval mode, batch_size rows at a time; the model's mode is restored afterwards.

    inputs, targets: (w, T) int64, w >= 1. The last batch may be short. At most one batch is in memory.
    """
    was_training = model.training
    model.eval()
    loss_sum = 0.0
    num_correct = 0
    for start in range(0, len(inputs), batch_size):
        rows = slice(start, start + batch_size)
        batch_inputs = torch.from_numpy(inputs[rows]).to(numerics.device)
        batch_targets = torch.from_numpy(targets[rows]).to(numerics.device).flatten()
        with numerics.autocast():
            batch_loss_sum, batch_correct = _batch_sums(model, batch_inputs, batch_targets)
        loss_sum += batch_loss_sum
        num_correct += batch_correct
    model.train(was_training)
    return LossSums(loss_sum, num_correct, targets.size)


def _batch_sums(model: GPTModel, inputs: Tensor, targets: Tensor) -> tuple[float, int]:
    """Summed loss and number of correct tokens of one batch. inputs: (B, T). targets: (B T,)."""
    weight = model.out_head.weight
    if inputs.device.type == "cpu" or isinstance(weight, DTensor):
        logits = model(inputs).flatten(0, 1)  # (B, T, V) -> (B T, V)
        loss = functional.cross_entropy(logits, targets)
        return loss.item() * targets.numel(), int((logits.argmax(dim=-1) == targets).sum().item())
    # In chunks on a GPU: the float32 logits of a whole batch would take more memory than a training step.
    hidden = model.hidden_states(inputs).flatten(0, 1)  # (B, T, D) -> (B T, D)
    loss_sum, num_correct = head_metrics(hidden, weight, targets)
    return float(loss_sum), int(num_correct)


def require_finite(values: Mapping[str, float], where: str) -> None:
    """Raise NonFiniteError naming the first value that is NaN or infinite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{where}: {name} is {value}, not a finite number. "
                "A lower peak_lr, a longer warmup (warmup_ratio) or a smaller max_norm may help"
            )
