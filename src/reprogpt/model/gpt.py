"""The GPT model of Raschka, "Build a Large Language Model (From Scratch)", chapter 4.

Pre-norm transformer blocks, GELU by tanh, learned positions, dropout at embedding, attention weights
and residual branches, an output head of its own. Modules are made in the book's order and carry its
names, so that one seed gives the book's weights bit for bit.

Shapes: B batch, T tokens of a row, D emb_dim, H heads, V vocab_size.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# Two contexts for a block's forward pass: the first for itself, the second for when it is run again.
Replay = Callable[[], tuple[AbstractContextManager[object], AbstractContextManager[object]]]
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
    replay: where given, activations within a block are not kept for the backward pass but made again in it; the
    second of its contexts must then bring back the masks that dropout drew in the first.
    """

    def __init__(self, config: GPTConfig, dropout: Dropout = functional.dropout, replay: Replay | None = None) -> None:
        super().__init__()
        self.config = config
        self.dropout = dropout
        self.replay = replay
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim)
        self.pos_emb = nn.Embedding(config.context_length, config.emb_dim)
        self.trf_blocks = nn.ModuleList(TransformerBlock(config, dropout) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.emb_dim)
        self.out_head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.out_head(self.features(ids))
        return logits

    def features(self, ids: Tensor, past: "list[Past] | None" = None) -> Tensor:
        """What the output head reads: ids (B, T) -> (B, T, D). Saves the head where few logits are needed.

        past: of every block, filled here. Where it holds tokens, ids is the one after them, T = 1; in eval mode only.
        """
        start = past[0].num_tokens if past else 0
        x = self.tok_emb(ids) + self.pos_emb.weight[start : start + ids.shape[1]]
        if self.training:
            x = self.dropout(x, self.config.drop_rate)
        for index, block in enumerate(self.trf_blocks):
            if self.replay is not None and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, context_fn=self.replay)
            else:
                x = block(x, past[index] if past else None)
        normed: Tensor = self.final_norm(x)
        return normed


class Past:
    """Keys and values of the tokens that one block has read, so that the next token need not read them again."""

    def __init__(self) -> None:
        self._keys_and_values: tuple[Tensor, Tensor] | None = None

    @property
    def num_tokens(self) -> int:
        return 0 if self._keys_and_values is None else self._keys_and_values[0].shape[2]

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of the newest tokens, (B, H, T, D/H) each; return those of all."""
        if self._keys_and_values is not None:
            past_keys, past_values = self._keys_and_values
            key, value = torch.cat([past_keys, key], dim=2), torch.cat([past_values, value], dim=2)
        self._keys_and_values = key, value
        return key, value


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

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        x = x + self._dropped(self.att(self.norm1(x), past))
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

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        query, key, value = (self._heads(project(x)) for project in (self.W_query, self.W_key, self.W_value))
        if past is not None:
            key, value = past.extend(key, value)
        drop_rate = self.drop_rate if self.training else 0.0
        if drop_rate > 0 and not query.is_cuda:
            context = self._attend_with_dropout(query, key, value)
        else:
            # A single newest token may see all before it. Dropout in here is torch's own, and only a GPU's is fused.
            is_causal = query.shape[2] > 1
            context = functional.scaled_dot_product_attention(
                query, key, value, dropout_p=drop_rate, is_causal=is_causal
            )
        out: Tensor = self.out_proj(context.transpose(1, 2).flatten(2))  # (B, H, T, D/H) -> (B, T, D)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.n_heads, -1).transpose(1, 2)  # (B, T, D) -> (B, H, T, D/H)

    def _attend_with_dropout(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Scaling the queries and adding -inf take a fifth of the time of scaling and filling the scores, which
        # are four times as many, and have nothing to do in the backward pass.
        scores = (query * key.shape[3] ** -0.5) @ key.transpose(2, 3)  # (B, H, T, T)
        future = scores.new_full(scores.shape[2:], -torch.inf).triu(1)
        weights = torch.softmax(scores.add_(future), dim=-1)
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
