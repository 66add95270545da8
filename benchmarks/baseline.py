"""The yardstick: the book's model and training loop in their plain form, each formula written out.

Attention multiplies whole matrices and masks them, normalisation and GELU are sums and powers, AdamW goes
parameter by parameter, sampling reads the whole text again for every token. Nothing is tuned, and nothing of the
package is used: what the package computes otherwise is tested, and timed, against this.

Shapes: B batch, T tokens of a row, D emb_dim, H heads, V vocab_size.
Source: Raschka, "Build a Large Language Model (From Scratch)", chapters 3 to 5 and appendix D.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Batches = DataLoader[tuple[Tensor, ...]]


class LayerNorm(nn.Module):
    """Rows of mean 0 and variance 1, scaled and shifted; (B, T, D) -> (B, T, D)."""

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        return self.scale * ((x - mean) / torch.sqrt(variance + self.eps)) + self.shift


class GELU(nn.Module):
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


class MultiHeadAttention(nn.Module):
    """Causal self-attention, (B, T, D) -> (B, T, D)."""

    mask: Tensor

    def __init__(self, emb_dim: int, context_length: int, drop_rate: float, n_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.W_query = nn.Linear(emb_dim, emb_dim, bias=qkv_bias)
        self.W_key = nn.Linear(emb_dim, emb_dim, bias=qkv_bias)
        self.W_value = nn.Linear(emb_dim, emb_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(emb_dim, emb_dim)
        self.dropout = nn.Dropout(drop_rate)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length), diagonal=1))

    def forward(self, x: Tensor) -> Tensor:
        num_rows, num_tokens, emb_dim = x.shape
        heads = (num_rows, num_tokens, self.n_heads, emb_dim // self.n_heads)
        query = self.W_query(x).view(heads).transpose(1, 2)  # (B, H, T, D/H)
        key = self.W_key(x).view(heads).transpose(1, 2)
        value = self.W_value(x).view(heads).transpose(1, 2)
        scores = query @ key.transpose(2, 3)  # (B, H, T, T)
        scores.masked_fill_(self.mask.bool()[:num_tokens, :num_tokens], -torch.inf)
        weights = self.dropout(torch.softmax(scores / key.shape[-1] ** 0.5, dim=-1))
        context = (weights @ value).transpose(1, 2).contiguous().view(num_rows, num_tokens, emb_dim)
        out: Tensor = self.out_proj(context)
        return out


class FeedForward(nn.Module):
    """(B, T, D) -> (B, T, D), four times as wide inside."""

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(emb_dim, 4 * emb_dim), GELU(), nn.Linear(4 * emb_dim, emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each after a normalisation and added to what came in."""

    def __init__(self, emb_dim: int, context_length: int, drop_rate: float, n_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.att = MultiHeadAttention(emb_dim, context_length, drop_rate, n_heads, qkv_bias=qkv_bias)
        self.ff = FeedForward(emb_dim)
        self.norm1 = LayerNorm(emb_dim)
        self.norm2 = LayerNorm(emb_dim)
        self.drop_shortcut = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x)))
        out: Tensor = x + self.drop_shortcut(self.ff(self.norm2(x)))
        return out


# Of params.yaml: the arguments of PlainGPT.
MODEL_KEYS = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "drop_rate", "qkv_bias")


class PlainGPT(nn.Module):
    """Token ids (B, T) -> logits (B, T, V). Parameters in the order, and with the first values, of the book's."""

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        emb_dim: int,
        n_heads: int,
        n_layers: int,
        drop_rate: float,
        qkv_bias: bool,
    ) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(vocab_size, emb_dim)
        self.pos_emb = nn.Embedding(context_length, emb_dim)
        self.drop_emb = nn.Dropout(drop_rate)
        self.trf_blocks = nn.Sequential(
            *(TransformerBlock(emb_dim, context_length, drop_rate, n_heads, qkv_bias=qkv_bias) for _ in range(n_layers))
        )
        self.final_norm = LayerNorm(emb_dim)
        self.out_head = nn.Linear(emb_dim, vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        logits: Tensor = self.out_head(self.final_norm(self.trf_blocks(self.drop_emb(x))))
        return logits


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of a batch, nats per token."""
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def find_highest_gradient(model: nn.Module) -> float:
    """The largest signed entry of all gradients, parameter by parameter."""
    highest = -math.inf
    for parameter in model.parameters():
        if parameter.grad is not None:
            highest = max(highest, float(parameter.grad.flatten().max().item()))
    return highest


@dataclass(frozen=True)
class PlainPlan:
    """What plain_training needs besides model and batches; names as in params.yaml."""

    n_epochs: int
    warmup_steps: int
    initial_lr: float
    peak_lr: float
    min_lr: float
    weight_decay: float
    max_norm: float
    eval_freq: int
    eval_iter: int
    prompt: list[int]
    max_new_tokens: int


def plain_training(model: PlainGPT, batches: Batches, val_batches: Batches, plan: PlainPlan) -> Iterator[float]:
    """Train, evaluate and sample as the book's train_model does; yield each step's loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.peak_lr, weight_decay=plan.weight_decay)
    total_steps, step = len(batches) * plan.n_epochs, -1
    for _ in range(plan.n_epochs):
        model.train()
        for inputs, targets in batches:
            optimizer.zero_grad()
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = _rate(step, total_steps, plan)
            loss = loss_of(model, inputs, targets)
            torch.autograd.backward(loss)
            find_highest_gradient(model)
            if step >= plan.warmup_steps:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm=plan.max_norm)
            optimizer.step()
            if plan.eval_freq and step % plan.eval_freq == 0:
                evaluate(model, batches, plan.eval_iter)
                evaluate(model, val_batches, plan.eval_iter)
            yield loss.item()
        plain_sample(model, plan.prompt, plan.max_new_tokens)


def batches_of(inputs: Tensor, targets: Tensor, *, batch_size: int, shuffle: bool) -> Batches:
    """The book's data loader over rows (w, T); the training one drops a short last batch."""
    return DataLoader(TensorDataset(inputs, targets), batch_size=batch_size, shuffle=shuffle, drop_last=shuffle)


def plain_sample(model: PlainGPT, prompt: list[int], max_new_tokens: int) -> list[int]:
    """The prompt's likeliest continuation; every token's turn reads all before it."""
    model.eval()
    ids = torch.tensor([prompt])
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(ids[:, -model.pos_emb.num_embeddings :])[:, -1]
        ids = torch.cat([ids, torch.softmax(logits, dim=-1).argmax(dim=-1, keepdim=True)], dim=1)
    model.train()
    return [int(number) for number in ids[0]]


def evaluate(model: PlainGPT, batches: Batches, eval_iter: int) -> float:
    """Mean loss of the first eval_iter batches, nats per token."""
    model.eval()
    with torch.no_grad():
        losses = [loss_of(model, *batch).item() for _, batch in zip(range(eval_iter), batches, strict=False)]
    model.train()
    return sum(losses) / len(losses)


def _rate(step: int, total_steps: int, plan: PlainPlan) -> float:
    if step < plan.warmup_steps:
        return plan.initial_lr + step * (plan.peak_lr - plan.initial_lr) / plan.warmup_steps
    progress = (step - plan.warmup_steps) / (total_steps - plan.warmup_steps)
    return plan.min_lr + (plan.peak_lr - plan.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
