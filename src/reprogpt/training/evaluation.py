"""Losses over rows of a split, weighted by tokens, and what follows from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tiktoken
import torch
from torch.nn import functional

from reprogpt.corpus.tokens import num_bytes
from reprogpt.corpus.windows import Windows, windows
from reprogpt.errors import NonFiniteError
from reprogpt.model.gpt import GPTModel
from reprogpt.numerics import Numerics

IdRows = np.ndarray | Windows


@dataclass(frozen=True)
class Score:
    """Sums over the predicted tokens of some rows; the ratios are taken last, so short batches count right."""

    loss_nats: float
    correct: int
    num_tokens: int

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token."""
        return self.loss_nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 709 else math.inf

    @property
    def accuracy(self) -> float:
        """Share of tokens that got the highest logit."""
        return self.correct / self.num_tokens

    def bits_per_byte(self, num_bytes: int) -> float:
        """Total loss in bits over the bytes of text that the predicted tokens stand for."""
        return self.loss_nats / math.log(2) / num_bytes


@torch.no_grad()
def score(model: GPTModel, inputs: IdRows, targets: IdRows, *, batch_size: int, numerics: Numerics) -> Score:
    """Score all rows, batch_size at a time, without dropout; the model's mode is as before afterwards.

    inputs, targets: (w, T) int64, w >= 1. The last batch may be short. No more than a batch is in memory.
    """
    was_training = model.training
    model.eval()
    loss_nats, correct = 0.0, 0
    for start in range(0, len(inputs), batch_size):
        rows = slice(start, start + batch_size)
        wanted = torch.from_numpy(targets[rows]).to(numerics.device).flatten()
        with numerics.autocast():
            logits = model(torch.from_numpy(inputs[rows]).to(numerics.device)).flatten(0, 1)
            loss = functional.cross_entropy(logits, wanted)
        loss_nats += loss.item() * wanted.numel()
        correct += int((logits.argmax(dim=-1) == wanted).sum().item())
    model.train(was_training)
    return Score(loss_nats, correct, targets.size)


def final_results(
    model: GPTModel,
    encoding: tiktoken.Encoding,
    train_ids: np.ndarray,
    val_ids: np.ndarray,
    *,
    batch_size: int,
    numerics: Numerics,
) -> dict[str, float]:
    """eval.json: losses over both whole splits, cut into rows with no overlap, and what follows for validation.

    Bits per byte count the bytes of the predicted tokens alone. Raises DataError if a split is shorter
    than a row.
    """
    length, vocab_size = model.config.context_length, model.config.vocab_size
    rows = {
        name: windows(ids, context_length=length, stride=length, vocab_size=vocab_size)
        for name, ids in (("train", train_ids), ("val", val_ids))
    }
    predicted = val_ids[1 : 1 + rows["val"][1].size]  # rows that don't overlap leave out nothing between them
    scores = {name: score(model, *pair, batch_size=batch_size, numerics=numerics) for name, pair in rows.items()}
    results = {
        "final_train_loss": scores["train"].loss,
        "final_val_loss": scores["val"].loss,
        "val_perplexity": scores["val"].perplexity,
        "val_bits_per_byte": scores["val"].bits_per_byte(num_bytes(encoding, predicted)),
        "val_accuracy": scores["val"].accuracy,
    }
    require_finite(results, "evaluation of the final weights")
    return results


def require_finite(values: Mapping[str, float], where: str) -> None:
    """Raise NonFiniteError naming the first value that is NaN or infinite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{where}: {name} is {value}, not a finite number. "
                "A lower peak_lr, a longer warmup (warmup_ratio) or a smaller max_norm may help"
            )
