"""Autoregressive sampling from a model."""

from collections.abc import Iterator

import torch
from torch import Tensor

from reprogpt.model.gpt import GPTModel
from reprogpt.model.kv_cache import KVCache


def generate(
    model: GPTModel,
    prompt: list[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    stop_token: int | None = None,
) -> Iterator[int]:
    """Yield max_new_tokens token ids that continue prompt; the model's mode is restored afterwards.

    prompt: at least one id; the model sees the last context_length tokens of prompt and continuation.
    temperature: 0 is greedy and draws nothing; above 0 samples from softmax(logits / temperature), among the top_k
    largest logits where top_k is given.
    generator: a CPU generator, needed when temperature is above 0.
    stop_token: an id that ends the text early and is not yielded; None: none does.
    """
    was_training = model.training
    model.eval()
    decoder = _CachedDecoder(model)
    ids = list(prompt)
    try:
        for _ in range(max_new_tokens):
            token = _next_token(decoder.last_logits(ids), temperature, top_k, generator)
            if token == stop_token:
                return
            ids.append(token)
            yield token
    finally:
        model.train(was_training)


class _CachedDecoder:
    """Decodes with a KV cache while the text fits into context_length.

    A longer text moves its window at every token, which changes each token's position: it is read again.
    """

    def __init__(self, model: GPTModel) -> None:
        self._model = model
        self._kv_caches: list[KVCache] = []
        self._num_read = 0

    @torch.no_grad()
    def last_logits(self, ids: list[int]) -> Tensor:
        """Logits of the token after ids: (V,) float32 on the CPU. The output head sees the last position only."""
        length = self._model.config.context_length
        if self._num_read == 0 or len(ids) > length:
            self._kv_caches = [KVCache() for _ in self._model.trf_blocks]
            self._num_read = max(0, len(ids) - length)
        unread = torch.tensor([ids[self._num_read :]], device=self._model.tok_emb.weight.device)
        self._num_read = len(ids)
        hidden = self._model.hidden_states(unread, self._kv_caches)
        logits: Tensor = self._model.out_head(hidden[0, -1])
        return logits.float().cpu()


def _next_token(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> int:
    if temperature == 0:
        return int(logits.argmax().item())
    if top_k is not None and top_k < len(logits):
        smallest_kept = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator).item())
