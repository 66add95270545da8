"""The yardstick on a GPU: a GPT of the same size in the way that nanoGPT trains one, in plain form.

Fused query/key/value product, torch's attention kernel, cross-entropy on the whole logits, autocast, clipping by
clip_grad_norm_, fused AdamW, the whole model under torch.compile; nothing asks for equal bits. Parameters as in
params.yaml, so that both train the same shapes: an output head of its own, biases but for query, key and value.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from reprogpt.params.train import TrainParams


class Block(nn.Module):
    """Pre-norm attention and feed-forward, (B, T, D) -> (B, T, D)."""

    def __init__(self, params: TrainParams) -> None:
        super().__init__()
        width = params.emb_dim
        self.n_heads = params.n_heads
        self.drop_rate = params.drop_rate
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=params.qkv_bias)
        self.projection = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = (*x.shape[:2], self.n_heads, -1)
        query, key, value = (part.view(heads).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        context = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.drop_rate if self.training else 0.0
        )
        x = x + self._drop(self.projection(context.transpose(1, 2).flatten(2)))
        hidden = functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self._drop(self.down(hidden))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.drop_rate, self.training)


class BaselineGPT(nn.Module):
    """Token ids and targets, (B, T) each -> mean cross-entropy."""

    def __init__(self, params: TrainParams) -> None:
        super().__init__()
        self.drop_rate = params.drop_rate
        self.tokens = nn.Embedding(params.vocab_size, params.emb_dim)
        self.positions = nn.Embedding(params.context_length, params.emb_dim)
        self.blocks = nn.ModuleList(Block(params) for _ in range(params.n_layers))
        self.norm = nn.LayerNorm(params.emb_dim)
        self.head = nn.Linear(params.emb_dim, params.vocab_size, bias=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        x = functional.dropout(x, self.drop_rate, self.training)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.flatten())


class BaselineTraining:
    """Model and optimizer; step() trains on a batch and returns its loss, on the device."""

    def __init__(self, params: TrainParams, device: torch.device, *, compiled: bool) -> None:
        torch.manual_seed(params.seed)
        self.params = params
        self.device = device
        self.model = BaselineGPT(params).to(device)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=params.peak_lr, weight_decay=params.weight_decay, fused=True
        )

    def step(self, ids: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.params.precision == "bf16"):
            loss: Tensor = self.forward(ids, targets)
        torch.autograd.backward(loss)
        if self.params.max_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.params.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
