"""The text samples of the evaluate stage: one greedy, a few drawn."""

import numpy as np
import tiktoken
import torch

from reprogpt.data.tokens import decode
from reprogpt.model.generate import generate
from reprogpt.model.gpt import GPTModel
from reprogpt.numerics.device import Numerics
from reprogpt.params.evaluate import EvaluateParams

NUM_DRAWN = 3
_SAMPLES = 3  # the second word of a generator's seed; randomness.py uses 1, 2 and 4


def sample_text(
    model: GPTModel,
    encoding: tiktoken.Encoding,
    *,
    params: EvaluateParams,
    numerics: Numerics,
    stop_token: int | None = None,
) -> str:
    """The text of samples.txt: start_context continued greedily, then NUM_DRAWN times, each with its own generator.

    stop_token: ends a sample early and is not part of it; None: samples have their full length.
    """
    prompt = encoding.encode_ordinary(params.start_context)

    def continue_prompt(temperature: float, generator: torch.Generator | None) -> str:
        with numerics.autocast():
            ids = generate(
                model,
                prompt,
                params.max_new_tokens,
                temperature=temperature,
                top_k=params.top_k,
                generator=generator,
                stop_token=stop_token,
            )
            return decode(encoding, prompt + list(ids))

    sections = [f"greedy\n{continue_prompt(0.0, None)}\n"]
    for number in range(1, NUM_DRAWN + 1):
        title = f"temperature {params.temperature}, top_k {params.top_k}, sample {number}"
        text = continue_prompt(params.temperature, _generator(params.seed, number))
        sections.append(f"{title}\n{text}\n")
    return "\n".join(sections)


def _generator(seed: int, number: int) -> torch.Generator:
    words = np.random.SeedSequence([seed, _SAMPLES, number]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> 1))
