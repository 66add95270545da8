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
    """Yield max_new_tokens token ids that continue prompt; the model's mode is restored afterwards.

    prompt: at least one id; the model sees the last context_length tokens of prompt and continuation.
    temperature: 0 is greedy and draws nothing; above 0 samples from softmax(logits / temperature), among the top_k
    largest logits where top_k is given.
    generator: a CPU generator, needed when temperature is above 0.
    stop_token: an id that ends the text early and is not yielded; None: the text has its full length.
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
    with closing(steps):
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
    """Continue several prompts at once, each as generate would; yield the tokens of each step by row.

    prompts: of any lengths; a row is an index into them. Steps after a row's text has ended do not contain the row.
    generators: one per row, so that a row's draws do not depend on the others.
    Other arguments are as in generate. A row's logits may differ in rounding from those it has alone, because matrix
    products with more rows add in another order.
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
            for row in [row for row, token in tokens.items() if token == stop_token]:
                del tokens[row], texts[row]
            if not texts:
                return
            for row, token in tokens.items():
                texts[row].append(token)
            yield tokens
    finally:
        model.train(was_training)


class _CachedDecoder:
    """Decodes texts with one KV cache while they fit into context_length.

    Each prompt is read separately, then all rows advance together. The window of a text longer than context_length
    moves with every token, which changes each token's position: such a text is read again, separately.
    """

    def __init__(self, model: GPTModel) -> None:
        self._model = model
        self._kv_caches: list[KVCache] = []
        self._rows: list[int] = []  # in the caches, in their order

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
        read: dict[int, list[KVCache]] = {}
        for row, ids in texts.items():
            if row in logits:
                continue
            kv_caches = [KVCache() for _ in self._model.trf_blocks]
            hidden = self._hidden_states([ids[-self._model.config.context_length :]], kv_caches)
            logits[row] = self._logits(hidden)[0]
            if self._fits(ids):
                read[row] = kv_caches
        if read:  # in the first call only: later, texts that are not cached no longer fit
            self._rows = list(read)
            self._kv_caches = [KVCache.stack(of_block) for of_block in zip(*read.values(), strict=True)]
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
        """(R, T, D) -> (R, V), of the last position."""
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
