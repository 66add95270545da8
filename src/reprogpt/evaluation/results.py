"""The metrics of eval.json: losses over both whole splits, and what follows from them."""

import numpy as np
import tiktoken

from reprogpt.corpus.tokens import num_bytes
from reprogpt.corpus.windows import windows
from reprogpt.evaluation.evaluate import evaluate, require_finite
from reprogpt.model.gpt import GPTModel
from reprogpt.numerics.device import Numerics


def final_results(
    model: GPTModel,
    encoding: tiktoken.Encoding,
    train_ids: np.ndarray,
    val_ids: np.ndarray,
    *,
    batch_size: int,
    numerics: Numerics,
) -> dict[str, float]:
    """The metrics of eval.json: losses over both whole splits, in rows without overlap, and validation metrics.

    Bits per byte count the bytes of the predicted tokens only. Raises DataError if a split is shorter than a row,
    NonFiniteError if a metric is not finite.
    """
    length = model.config.context_length
    vocab_size = model.config.vocab_size
    train_rows = windows(train_ids, context_length=length, stride=length, vocab_size=vocab_size)
    val_rows = windows(val_ids, context_length=length, stride=length, vocab_size=vocab_size)
    train = evaluate(model, *train_rows, batch_size=batch_size, numerics=numerics)
    val = evaluate(model, *val_rows, batch_size=batch_size, numerics=numerics)
    predicted_ids = val_ids[1 : 1 + val.num_tokens]  # rows without overlap: the predicted tokens are contiguous
    results = {
        "final_train_loss": train.loss,
        "final_val_loss": val.loss,
        "val_perplexity": val.perplexity,
        "val_bits_per_byte": val.bits_per_byte(num_bytes(encoding, predicted_ids)),
        "val_accuracy": val.accuracy,
    }
    require_finite(results, "evaluation of the final weights")
    return results
