"""`reprogpt generate`: text from a trained model, written as it comes."""

import codecs
import math
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tiktoken
import torch

from reprogpt.commands.choosing import require_run
from reprogpt.corpus.tokens import load_encoding
from reprogpt.errors import PipelineError
from reprogpt.model.checkpoint import load_model
from reprogpt.model.generation import generate
from reprogpt.numerics import set_up_numerics
from reprogpt.record.store import download_checkpoint, recorded_runs

MODEL = Path("data/model")


@dataclass(frozen=True)
class Sampling:
    """length: tokens, at least 1. temperature: at least 0; 0 takes the likeliest token every time.

    top_k: draw from this many likeliest tokens, at least 1, None = all. seed: at least 0; one seed gives one text.
    """

    length: int
    temperature: float
    top_k: int | None
    seed: int

    def problems(self) -> list[str]:
        """What is out of its bounds, in words."""
        found = []
        if self.length < 1:
            found.append(f"--length {self.length} must be at least 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            found.append(f"--temperature {self.temperature} must be a number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            found.append(f"--top-k {self.top_k} must be at least 1")
        if not 0 <= self.seed < 2**63:
            found.append(f"--seed {self.seed} must be at least 0 and below 2**63")
        return found


def generate_text(prompt: str, sampling: Sampling, run: str | None) -> None:
    """Print prompt and continuation to standard output, each part as soon as it is there.

    run: an MLflow run whose checkpoint is used; None takes data/model.
    Raises PipelineError for a value out of bounds, a run or checkpoint that is not there, or a prompt whose tokens
    the model does not know.
    """
    problems = sampling.problems() + ([] if prompt else ["the prompt is empty: at least one character is needed"])
    if problems:
        raise PipelineError("; ".join(problems))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `… | head` ends this as it ends other programs
    numerics = set_up_numerics(device="auto", precision="fp32", matmul="auto")
    encoding = load_encoding("gpt2")
    with _checkpoint(run) as folder:
        model = load_model(folder).to(numerics.device)
    ids = encoding.encode_ordinary(prompt)
    if max(ids) >= model.config.vocab_size:
        raise PipelineError(f"the prompt has token id {max(ids)}, but the model knows {model.config.vocab_size} only")
    new = generate(
        model,
        ids,
        sampling.length,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        stream=torch.Generator().manual_seed(sampling.seed),
    )
    sys.stdout.write(prompt)
    for part in as_text(encoding, new):
        sys.stdout.write(part)
        sys.stdout.flush()
    sys.stdout.write("\n")


def as_text(encoding: tiktoken.Encoding, ids: Iterable[int]) -> Iterator[str]:
    """The text of ids in parts, one for each id: a character whose bytes are spread over tokens comes with its last.

    The replacement character stands for bytes that are not UTF-8 and ids without a token.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for number in ids:
        yield decoder.decode(encoding.decode_single_token_bytes(number) if number < encoding.n_vocab else b"\xff")
    yield decoder.decode(b"", final=True)


@contextmanager
def _checkpoint(run: str | None) -> Iterator[Path]:
    if run is None:
        if not MODEL.is_dir():
            raise PipelineError(
                f"{MODEL} is not there: `dvc repro` makes it, `dvc checkout` or `dvc pull` brings it back"
            )
        yield MODEL
        return
    chosen, remark = require_run(run, recorded_runs())
    if remark:
        print(remark, file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        yield download_checkpoint(chosen.id, Path(folder))
