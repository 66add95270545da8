"""The metrics of eval.json."""

import math

import numpy as np
import pytest

from reprogpt.corpus.tokens import load_encoding
from reprogpt.errors import DataError, NonFiniteError
from reprogpt.evaluation.results import final_results
from reprogpt.model.gpt import GPTModel
from tests.tiny import CPU, model_with_odds, tiny_model


@pytest.fixture
def model() -> GPTModel:
    """Gives token 0 half the probability, tokens 1 and 2 a quarter each, at every position."""
    return model_with_odds({0: 2.0, 1: 1.0, 2: 1.0})


def test_final_results_of_both_splits(model: GPTModel) -> None:
    # 17 tokens fill two rows of eight predicted tokens; ids 0, 1 and 2 are one byte each.
    train, val = np.zeros(17, np.uint16), np.array([0] * 9 + [1] * 8 + [0] * 5, np.uint16)
    results = final_results(model, load_encoding("gpt2"), train, val, batch_size=1, numerics=CPU)
    assert results == {
        "final_train_loss": pytest.approx(math.log(2)),
        "final_val_loss": pytest.approx(1.5 * math.log(2)),
        "val_perplexity": pytest.approx(2**1.5),
        "val_bits_per_byte": pytest.approx(1.5),
        "val_accuracy": 0.5,
    }


def test_bits_per_byte_counts_the_bytes_of_predicted_tokens() -> None:
    # Token 1169 ("the") has three bytes, token 0 one; the first token is not predicted.
    model = tiny_model(vocab_size=50257)
    model.out_head.weight.data.zero_()  # all tokens alike: log2(50257) bits each
    val = np.array([1169, *[0] * 8], np.uint16)
    results = final_results(model, load_encoding("gpt2"), val, val, batch_size=1, numerics=CPU)
    assert results["val_bits_per_byte"] == pytest.approx(8 * math.log2(50257) / 8, rel=1e-5)


def test_a_split_shorter_than_a_row_is_refused(model: GPTModel) -> None:
    ids = np.zeros(17, np.uint16)
    with pytest.raises(DataError, match="8 tokens cannot fill one row"):
        final_results(model, load_encoding("gpt2"), ids, ids[:8], batch_size=1, numerics=CPU)


def test_weights_that_are_not_finite_give_no_results(model: GPTModel) -> None:
    model.out_head.weight.data[0, 0] = math.nan
    ids = np.zeros(17, np.uint16)
    with pytest.raises(NonFiniteError, match="evaluation of the final weights: final_train_loss is nan"):
        final_results(model, load_encoding("gpt2"), ids, ids, batch_size=1, numerics=CPU)
