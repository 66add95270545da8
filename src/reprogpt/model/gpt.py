"""The GPT model of Raschka, "Build a Large Language Model (From Scratch)", chapter 4.

Pre-norm transformer blocks, GELU by tanh, learned positions, dropout at embedding, attention weights
and residual branches, an output head of its own. Modules are made in the book's order and carry its
names, so that one seed gives the book's weights bit for bit.

Shapes: B batch, T tokens of a row, D emb_dim, H heads, V vocab_size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# (values, rate) -> values with a share `rate` set to zero and the rest scaled by 1 / (1 - rate)
Dropout = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class GPTConfig:
    """The model's shape, by the names of params.yaml.

    n_heads divides emb_dim; 0 <= drop_rate < 1; context_length is the longest row it can read.
    """

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float
    qkv_bias: bool


class GPTModel(nn.Module):
    """Token ids (B, T) int64, T <= context_length -> logits (B, T, V), float32 outside autocast.

    dropout: draws the masks in train mode; torch's own by default. eval() turns it off.
    """

    def __init__(self, config: GPTConfig, dropout: Dropout = functional.dropout) -> None:
        super().__init__()
        self.config = config
        self.dropout = dropout
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim)
        self.pos_emb = nn.Embedding(config.context_length, config.emb_dim)
        self.trf_blocks = nn.ModuleList(TransformerBlock(config, dropout) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.emb_dim)
        self.out_head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.out_head(self.features(ids))
        return logits

    def features(self, ids: Tensor) -> Tensor:
        """What the output head reads: ids (B, T) -> (B, T, D). Saves the head where few logits are needed."""
        x = self.tok_emb(ids) + self.pos_emb.weight[: ids.shape[1]]
        if self.training:
            x = self.dropout(x, self.config.drop_rate)
        for block in self.trf_blocks:
            x = block(x)
        normed: Tensor = self.final_norm(x)
        return normed


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on normalised input and added to the residual; (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig, dropout: Dropout) -> None:
        super().__init__()
        self.drop_rate = config.drop_rate
        self.dropout = dropout
        self.att = MultiHeadAttention(config, dropout)
        self.ff = FeedForward(config)
        self.norm1 = nn.LayerNorm(config.emb_dim)
        self.norm2 = nn.LayerNorm(config.emb_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._dropped(self.att(self.norm1(x)))
        return x + self._dropped(self.ff(self.norm2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        return self.dropout(branch, self.drop_rate) if self.training else branch


class MultiHeadAttention(nn.Module):
    """Causal self-attention with dropout on its weights; (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig, dropout: Dropout) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.drop_rate = config.drop_rate
        self.dropout = dropout
        self.W_query = nn.Linear(config.emb_dim, config.emb_dim, bias=config.qkv_bias)
        self.W_key = nn.Linear(config.emb_dim, config.emb_dim, bias=config.qkv_bias)
        self.W_value = nn.Linear(config.emb_dim, config.emb_dim, bias=config.qkv_bias)
        self.out_proj = nn.Linear(config.emb_dim, config.emb_dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._heads(project(x)) for project in (self.W_query, self.W_key, self.W_value))
        if self.training and self.drop_rate > 0:
            context = self._attend_with_dropout(query, key, value)
        else:
            context = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.out_proj(context.transpose(1, 2).flatten(2))  # (B, H, T, D/H) -> (B, T, D)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.n_heads, -1).transpose(1, 2)  # (B, T, D) -> (B, H, T, D/H)

    def _attend_with_dropout(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        num_tokens = query.shape[2]
        scores = query @ key.transpose(2, 3) * key.shape[3] ** -0.5  # (B, H, T, T)
        future = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=scores.device).triu(1)
        weights = torch.softmax(scores.masked_fill_(future, -torch.inf), dim=-1)
        return self.dropout(weights, self.drop_rate) @ value


class FeedForward(nn.Module):
    """Two layers, four times as wide inside, GELU by tanh between them; (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.emb_dim, 4 * config.emb_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * config.emb_dim, config.emb_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out
