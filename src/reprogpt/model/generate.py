"""Autoregressive sampling from a model."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing

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
    """Yield the token ids that continue prompt: max_new_tokens of them, or fewer if stop_token ends the text.

    prompt: at least one id; the model sees the last context_length tokens of prompt and continuation.
    temperature: 0 is greedy and draws nothing; above 0 samples from softmax(logits / temperature), restricted to the
    top_k largest logits if top_k is given.
    generator: a CPU generator; needed when temperature is above 0, else torch's global generator would be used.
    stop_token: an id that ends the text and is not yielded itself; None: never stop early.
    The model is in eval mode meanwhile; its mode is restored afterwards.
    """
    steps = generate_batch(
        model,
        [prompt],
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        generators=[generator],
        stop_token=stop_token,
    )
    with closing(steps):  # restores the model's mode at once if the caller stops early
        for tokens in steps:
            yield tokens[0]


def generate_batch(
    model: GPTModel,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    generators: Sequence[torch.Generator | None],
    stop_token: int | None = None,
) -> Generator[dict[int, int]]:
    """Continue several prompts at once, each as generate would; yield each step's tokens as {row: token id}.

    prompts: of any lengths; a row is an index into them. Once a row's text has ended, later steps do not contain it.
    generators: one per row, so that a row's draws do not depend on the others.
    Other arguments are as in generate. A row's logits may differ in rounding from those it would have alone, because
    matrix products of more rows sum in another order.
    """
    was_training = model.training
    model.eval()
    decoder = _CachedDecoder(model)
    texts = {row: list(prompt) for row, prompt in enumerate(prompts)}
    try:
        for _ in range(max_new_tokens):
            tokens = {}
            for row, logits in decoder.last_logits(texts).items():
                tokens[row] = _next_token(logits, temperature, top_k, generators[row])
            stopped = [row for row, token in tokens.items() if token == stop_token]
            for row in stopped:
                del tokens[row], texts[row]
            if not texts:
                return
            for row, token in tokens.items():
                texts[row].append(token)
            yield tokens
    finally:
        model.train(was_training)


class _CachedDecoder:
    """Decodes texts with KV caches as long as they fit into context_length.

    Each prompt is read separately, then all rows advance together. Once a text is longer than context_length, its
    window moves with every token. This changes the positions of all tokens, so cached keys and values are useless: the
    window is read again for each new token, separately from the other rows.
    """

    def __init__(self, model: GPTModel) -> None:
        self._model = model
        self._kv_caches: list[KVCache] = []
        self._rows: list[int] = []  # those in the caches, in the order of the caches

    @torch.no_grad()
    def last_logits(self, texts: Mapping[int, list[int]]) -> dict[int, Tensor]:
        """Logits of the token after each text: (V,) float32 on the CPU. Only the last position goes through the head.

        texts: by row; since the last call each has grown by one token, and some may have been dropped.
        """
        logits: dict[int, Tensor] = {}
        self._keep_rows([row for row in self._rows if row in texts and self._fits(texts[row])])
        if self._rows:
            hidden = self._hidden_states([texts[row][-1:] for row in self._rows], self._kv_caches)
            logits.update(zip(self._rows, self._logits(hidden), strict=True))
        new_caches: dict[int, list[KVCache]] = {}
        for row, ids in texts.items():
            if row in logits:
                continue
            kv_caches = [KVCache() for _ in self._model.trf_blocks]
            hidden = self._hidden_states([ids[-self._model.config.context_length :]], kv_caches)
            logits[row] = self._logits(hidden)[0]
            if self._fits(ids):
                new_caches[row] = kv_caches
        if new_caches:  # in the first call only: later, a text without a cache is one that no longer fits
            self._rows = list(new_caches)
            self._kv_caches = [KVCache.stack(of_block) for of_block in zip(*new_caches.values(), strict=True)]
        return {row: logits[row] for row in texts}

    def _fits(self, ids: list[int]) -> bool:
        return len(ids) <= self._model.config.context_length

    def _keep_rows(self, rows: list[int]) -> None:
        if not rows:
            self._kv_caches = []
        elif rows != self._rows:
            kept = [self._rows.index(row) for row in rows]
            for kv_cache in self._kv_caches:
                kv_cache.keep_rows(kept)
        self._rows = rows

    def _hidden_states(self, ids: list[list[int]], kv_caches: list[KVCache]) -> Tensor:
        return self._model.hidden_states(torch.tensor(ids, device=self._model.tok_emb.weight.device), kv_caches)

    def _logits(self, hidden: Tensor) -> Tensor:
        """(R, T, D) -> (R, V): logits of each row's last position, float32 on the CPU."""
        last = hidden[:, -1]
        # One row goes through the head as a vector: as a matrix of one row, its logits would be rounded differently.
        logits: Tensor = self._model.out_head(last[0])[None] if len(last) == 1 else self._model.out_head(last)
        return logits.float().cpu()


def _next_token(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> int:
    if temperature == 0:
        return int(logits.argmax().item())
    if top_k is not None and top_k < len(logits):
        smallest_kept = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator).item())
