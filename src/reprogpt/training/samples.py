"""The text samples that evaluate writes: one greedy, a few drawn."""

import numpy as np
import tiktoken
import torch

from reprogpt.corpus.tokens import decode
from reprogpt.model.generation import generate
from reprogpt.model.gpt import GPTModel
from reprogpt.numerics import Numerics
from reprogpt.params.evaluate import EvaluateParams

NUM_DRAWN = 3
_SAMPLES = 3  # first word after the seed; training uses 1 and 2


def sample_text(model: GPTModel, encoding: tiktoken.Encoding, *, params: EvaluateParams, numerics: Numerics) -> str:
    """The greedy continuation of start_context, then NUM_DRAWN drawn ones, each from a stream of its own."""
    prompt = encoding.encode_ordinary(params.start_context)

    def continuation(temperature: float, stream: torch.Generator | None) -> str:
        with numerics.autocast():
            ids = generate(
                model, prompt, params.max_new_tokens, temperature=temperature, top_k=params.top_k, stream=stream
            )
            return decode(encoding, prompt + list(ids))

    parts = [f"greedy\n{continuation(0.0, None)}\n"]
    for number in range(1, NUM_DRAWN + 1):
        title = f"temperature {params.temperature}, top_k {params.top_k}, sample {number}"
        parts.append(f"{title}\n{continuation(params.temperature, _stream(params.seed, number))}\n")
    return "\n".join(parts)


def _stream(seed: int, number: int) -> torch.Generator:
    words = np.random.SeedSequence([seed, _SAMPLES, number]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> 1))
