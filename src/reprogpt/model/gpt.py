"""The GPT model of Raschka, "Build a Large Language Model (From Scratch)", chapter 4.

Pre-norm transformer blocks, tanh-approximated GELU, learned positions, dropout on embeddings, attention weights and
residual branches, and an output head, tied to the token embeddings with tie_weights. Modules are created in the
book's order under its names, so that a seed gives the book's weights bit for bit.

Shapes: B batch, T tokens of a row, D emb_dim, H heads, V vocab_size.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from reprogpt.model.kv_cache import KVCache

# For torch.utils.checkpoint's context_fn: contexts of a block's forward pass and of its recomputation.
RecomputeContext = Callable[[], tuple[AbstractContextManager[object], AbstractContextManager[object]]]
# (values, rate) -> values with a share `rate` set to zero and the rest scaled by 1 / (1 - rate)
Dropout = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class GPTConfig:
    """The model's hyperparameters, by their names in params.yaml.

    n_heads divides emb_dim; 0 <= drop_rate < 1; context_length is the longest input in tokens.
    tie_weights: the output head's weight and the token embeddings are one parameter.
    """

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float
    qkv_bias: bool
    tie_weights: bool = False


class GPTModel(nn.Module):
    """Token ids (B, T) int64, T <= context_length -> logits (B, T, V), float32 outside autocast.

    dropout: applied in train mode; torch's own by default.
    activation_checkpointing: recompute a block's activations in the backward pass instead of keeping them.
    recompute_context: for a dropout whose generator torch.utils.checkpoint does not restore: contexts of the forward
    pass and of the recomputation; the second one makes dropout draw the same masks again.
    """

    def __init__(
        self,
        config: GPTConfig,
        dropout: Dropout = functional.dropout,
        *,
        activation_checkpointing: bool = False,
        recompute_context: RecomputeContext | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.dropout = dropout
        self.activation_checkpointing = activation_checkpointing
        self.recompute_context = recompute_context
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim)
        self.pos_emb = nn.Embedding(config.context_length, config.emb_dim)
        self.trf_blocks = nn.ModuleList(TransformerBlock(config, dropout) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.emb_dim)
        self.out_head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        if config.tie_weights:
            # The head's initial values are close to GPT-2's: with the embeddings', logits would start with a standard
            # deviation of sqrt(D). Both are drawn, so that later draws do not depend on tie_weights.
            self.tok_emb.weight = self.out_head.weight

    def weights(self) -> dict[str, Tensor]:
        """state_dict() with each tensor once: a tied head has only the name of the token embeddings."""
        tensors: dict[str, Tensor] = self.state_dict()
        if self.config.tie_weights:
            del tensors["out_head.weight"]
        return tensors

    def tie_head(self) -> None:
        """With config.tie_weights, make the head and the token embeddings one parameter again, the embeddings'."""
        if self.config.tie_weights:
            self.out_head.weight = self.tok_emb.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.out_head(self.hidden_states(ids))
        return logits

    def hidden_states(self, ids: Tensor, kv_caches: list[KVCache] | None = None) -> Tensor:
        """The output head's input: ids (B, T) -> (B, T, D). For callers that need few logits or fuse the head.

        kv_caches: one per block, updated here; eval mode only. If they hold tokens, ids is the next one, T = 1.
        """
        x = self._token_embeddings(ids) + self._position_embeddings(ids.shape[1], kv_caches)
        if self.training:
            x = self.dropout(x, self.config.drop_rate)
        for index, block in enumerate(self.trf_blocks):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = self._checkpointed(block, x)
            else:
                x = block(x, kv_caches[index] if kv_caches else None)
        normed: Tensor = self.final_norm(x)
        return normed

    def _position_embeddings(self, num_tokens: int, kv_caches: list[KVCache] | None) -> Tensor:
        """Position embeddings of the next num_tokens tokens: (T, D), or (B, 1, D) if cached rows differ in length."""
        start = kv_caches[0].num_positions if kv_caches else 0
        padding = kv_caches[0].padding if kv_caches else None
        if padding is not None:
            return self.pos_emb.weight[start - padding].unsqueeze(1)
        return self.pos_emb.weight[start : start + num_tokens]

    def _token_embeddings(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        if ids.is_cuda:
            # The same values. Under deterministic algorithms the backward pass of nn.Embedding waits for the GPU to
            # count segments on the host; that of indexing does not (`benchmarks.gpu check` finds no wait).
            return self.tok_emb.weight[ids]
        embeddings: Tensor = self.tok_emb(ids)
        return embeddings

    def _checkpointed(self, block: nn.Module, x: Tensor) -> Tensor:
        out: Tensor
        if self.recompute_context is None:
            out = checkpoint(block, x, use_reentrant=False)
        else:
            out = checkpoint(block, x, use_reentrant=False, context_fn=self.recompute_context)
        return out


class TransformerBlock(nn.Module):
    """Pre-norm attention, then pre-norm feed-forward, each added to the residual; (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig, dropout: Dropout) -> None:
        super().__init__()
        self.drop_rate = config.drop_rate
        self.dropout = dropout
        self.att = MultiHeadAttention(config, dropout)
        self.ff = FeedForward(config)
        self.norm1 = nn.LayerNorm(config.emb_dim)
        self.norm2 = nn.LayerNorm(config.emb_dim)

    def forward(self, x: Tensor, kv_cache: KVCache | None = None) -> Tensor:
        x = x + self._dropped(self.att(self.norm1(x), kv_cache))
        return x + self._dropped(self.ff(self.norm2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        return self.dropout(branch, self.drop_rate) if self.training else branch


class MultiHeadAttention(nn.Module):
    """Causal multi-head self-attention with dropout on its weights; (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig, dropout: Dropout) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.drop_rate = config.drop_rate
        self.dropout = dropout
        self.W_query = nn.Linear(config.emb_dim, config.emb_dim, bias=config.qkv_bias)
        self.W_key = nn.Linear(config.emb_dim, config.emb_dim, bias=config.qkv_bias)
        self.W_value = nn.Linear(config.emb_dim, config.emb_dim, bias=config.qkv_bias)
        self.out_proj = nn.Linear(config.emb_dim, config.emb_dim)

    def forward(self, x: Tensor, kv_cache: KVCache | None = None) -> Tensor:
        query, key, value = self._project(x)
        mask = None
        if kv_cache is not None:
            key, value = kv_cache.update(key, value)
            mask = kv_cache.attention_mask()
        drop_rate = self.drop_rate if self.training else 0.0
        if drop_rate > 0 and not query.is_cuda:
            context = self._attend_with_dropout(query, key, value)
        else:
            # A single new token attends to all cached ones. torch fuses the dropout of this call on a GPU only.
            is_causal = query.shape[2] > 1
            context = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=drop_rate, is_causal=is_causal
            )
        out: Tensor = self.out_proj(context.transpose(1, 2).flatten(2))  # (B, H, T, D/H) -> (B, T, D)
        return out

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, (B, T, D) -> (B, H, T, D/H) each."""
        if x.device.type == "cpu":
            query, key, value = self.W_query(x), self.W_key(x), self.W_value(x)
            return self._split_heads(query), self._split_heads(key), self._split_heads(value)
        # One product instead of three saves a GPU two kernel launches and two passes over x.
        weight = torch.cat([self.W_query.weight, self.W_key.weight, self.W_value.weight])
        bias = None
        if self.W_query.bias is not None:
            bias = torch.cat([self.W_query.bias, self.W_key.bias, self.W_value.bias])
        query, key, value = functional.linear(x, weight, bias).chunk(3, dim=-1)  # (B, T, 3 D) -> 3 x (B, T, D)
        return self._split_heads(query), self._split_heads(key), self._split_heads(value)

    def _split_heads(self, x: Tensor) -> Tensor:
        # reshape, as a chunk of the fused product is not contiguous.
        return x.reshape(*x.shape[:2], self.n_heads, -1).transpose(1, 2)  # (B, T, D) -> (B, H, T, D/H)

    def _attend_with_dropout(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Scaling the queries and adding -inf takes a fifth of the time of scaling and filling the scores, which are
        # four times as large, and adds nothing to the backward pass.
        scores = (query * key.shape[3] ** -0.5) @ key.transpose(2, 3)  # (B, H, T, T)
        future = scores.new_full(scores.shape[2:], -torch.inf).triu(1)
        weights = torch.softmax(scores.add_(future), dim=-1)
        return self.dropout(weights, self.drop_rate) @ value


class FeedForward(nn.Module):
    """Linear, tanh-approximated GELU, linear; 4 D wide inside; (B, T, D) -> (B, T, D)."""

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
