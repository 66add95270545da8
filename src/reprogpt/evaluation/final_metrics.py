"""The metrics of eval.json: losses over both complete splits, and validation metrics derived from them."""

import numpy as np
import tiktoken

from reprogpt.data.tokens import Tokens, num_bytes
from reprogpt.data.windows import windows
from reprogpt.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from reprogpt.evaluation.losses import IdRows, LossSums, require_finite, sum_losses
from reprogpt.model.gpt import GPTModel
from reprogpt.numerics.device import Numerics

BATCHES_PER_REDUCTION = 256  # per process, between two exchanges of their sums


def final_metrics(
    model: GPTModel,
    encoding: tiktoken.Encoding,
    train_ids: Tokens,
    val_ids: Tokens,
    *,
    batch_size: int,
    numerics: Numerics,
    max_train_tokens: int = 0,
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, float]:
    """Evaluate the model on both splits, cut into rows without overlap; returns the metrics by name.

    max_train_tokens: evaluate at most this many tokens of the training split, in the rows of chosen_rows; 0: all.
    group: processes that share the batches; each returns the same bits, for any number of processes.
    val_bits_per_byte counts only the bytes of the predicted tokens.
    Raises DataError if a split is shorter than a row, NonFiniteError if a metric is not finite.
    """
    length = model.config.context_length
    vocab_size = model.config.vocab_size
    train_rows = windows(train_ids, context_length=length, stride=length, vocab_size=vocab_size)
    val_rows = windows(val_ids, context_length=length, stride=length, vocab_size=vocab_size)
    chosen = chosen_rows(len(train_rows[0]), length, max_train_tokens)
    train = _sum_losses_by_batch(model, *train_rows, chosen, batch_size=batch_size, numerics=numerics, group=group)
    all_rows = np.arange(len(val_rows[0]))
    val = _sum_losses_by_batch(model, *val_rows, all_rows, batch_size=batch_size, numerics=numerics, group=group)
    num_predicted_bytes = num_bytes(encoding, val_ids, 1, 1 + val.num_tokens)  # contiguous: rows don't overlap
    results = {
        "final_train_loss": train.loss,
        "final_val_loss": val.loss,
        "val_perplexity": val.perplexity,
        "val_bits_per_byte": val.bits_per_byte(num_predicted_bytes),
        "val_accuracy": val.accuracy,
    }
    require_finite(results, "evaluation of the final weights")
    return results


def chosen_rows(num_rows: int, context_length: int, max_tokens: int) -> np.ndarray:
    """Indices of rows spread evenly over num_rows that hold at most max_tokens tokens in all: int64.

    At least one row, even if it is longer; all rows if max_tokens is 0 or large enough.
    """
    num_chosen = max(1, max_tokens // context_length)
    if max_tokens == 0 or num_chosen >= num_rows:
        return np.arange(num_rows)
    return np.arange(num_chosen) * num_rows // num_chosen


def _sum_losses_by_batch(
    model: GPTModel,
    inputs: IdRows,
    targets: IdRows,
    chosen: np.ndarray,
    *,
    batch_size: int,
    numerics: Numerics,
    group: ProcessGroup,
) -> LossSums:
    """Losses of the chosen rows; each process computes every group.size-th batch.

    The sums of the batches are added in the order of the batches, whichever process computed them, so the bits are
    those of a single process. The all-reduce adds the other processes' zeros to each sum, which is exact.
    """
    starts = range(0, len(chosen), batch_size)
    loss_sum = 0.0
    num_correct = 0
    num_exchanged = BATCHES_PER_REDUCTION * group.size
    for first in range(0, len(starts), num_exchanged):
        losses = []
        corrects = []
        for index, start in enumerate(starts[first : first + num_exchanged]):
            result = LossSums(0.0, 0, 0)
            if index % group.size == group.rank:
                rows = chosen[start : start + batch_size]
                result = sum_losses(model, inputs[rows], targets[rows], batch_size=batch_size, numerics=numerics)
            losses.append(result.loss_sum)
            corrects.append(result.num_correct)
        for batch_loss, batch_correct in zip(
            group.all_reduce_sum(*losses), group.all_reduce_sum(*corrects), strict=True
        ):
            loss_sum += batch_loss
            num_correct += int(batch_correct)
    return LossSums(loss_sum, num_correct, len(chosen) * targets.shape[1])
