"""Sampling text from a model, token by token."""

from collections.abc import Iterator

import torch
from torch import Tensor

from reprogpt.model.gpt import GPTModel, Past


def generate(
    model: GPTModel,
    prompt: list[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    stream: torch.Generator | None = None,
) -> Iterator[int]:
    """Yield max_new_tokens token ids that continue prompt; the model's mode is as before afterwards.

    prompt: one id or more; the model sees the last context_length of prompt and continuation.
    temperature: 0 takes the likeliest token (and draws nothing); above 0 draws from
    softmax(logits / temperature), among the top_k likeliest where that is given.
    stream: a CPU generator to draw from, needed when temperature is above 0.
    """
    was_training = model.training
    model.eval()
    reader = _Reader(model)
    ids = list(prompt)
    try:
        for _ in range(max_new_tokens):
            ids.append(_next_token(reader.last_logits(ids), temperature, top_k, stream))
            yield ids[-1]
    finally:
        model.train(was_training)


class _Reader:
    """Reads a growing text with a model, each token once for as long as all of it fits into context_length.

    A longer text moves its window at every token; each token in it then has another position, and is read again.
    """

    def __init__(self, model: GPTModel) -> None:
        self._model = model
        self._past: list[Past] = []
        self._num_read = 0

    @torch.no_grad()
    def last_logits(self, ids: list[int]) -> Tensor:
        """Logits of the token after ids: (V,) float32 on the CPU. Only the last position meets the output head."""
        length = self._model.config.context_length
        if self._num_read == 0 or len(ids) > length:
            self._past, self._num_read = [Past() for _ in self._model.trf_blocks], max(0, len(ids) - length)
        unread = torch.tensor([ids[self._num_read :]], device=self._model.tok_emb.weight.device)
        self._num_read = len(ids)
        logits: Tensor = self._model.out_head(self._model.features(unread, self._past)[0, -1])
        return logits.float().cpu()


def _next_token(logits: Tensor, temperature: float, top_k: int | None, stream: torch.Generator | None) -> int:
    if temperature == 0:
        return int(logits.argmax().item())
    if top_k is not None and top_k < len(logits):
        floor = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=stream).item())
