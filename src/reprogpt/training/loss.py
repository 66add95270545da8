"""The training loss as a module, which torch.distributed can wrap."""

import torch
from torch import Tensor, nn

from reprogpt.model.gpt import GPTModel
from reprogpt.model.loss_head import head_loss


class NextTokenLoss(nn.Module):
    """Mean cross-entropy in nats per token: inputs and targets, (B, T) int64 each -> a float32 scalar.

    compiled: run the transformer, and the loss's elementwise operations, under torch.compile.
    cuda_graphs: also replay the transformer's kernels as CUDA graphs, so that a small batch does not wait for the
    host to launch them. Gradients must be dropped before the next call.
    """

    def __init__(self, model: GPTModel, *, compiled: bool = False, cuda_graphs: bool = False) -> None:
        super().__init__()
        self.model = model
        self.compiled = compiled
        self.hidden_states = model.hidden_states
        if compiled:
            mode = "reduce-overhead" if cuda_graphs else None
            self.hidden_states = torch.compile(model.hidden_states, mode=mode)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden = self.hidden_states(inputs).flatten(0, 1)  # (B, T, D) -> (B T, D)
        return head_loss(hidden, self.model.out_head.weight, targets.flatten(), compiled=self.compiled)
