"""Losses over rows, weighted by tokens."""

import math

import numpy as np
import pytest
import torch

from reprogpt.corpus.tokens import load_encoding
from reprogpt.errors import DataError, NonFiniteError
from reprogpt.evaluation.evaluate import EvalResult, require_finite
from reprogpt.evaluation.results import final_results
from reprogpt.model.gpt import GPTModel
from reprogpt.numerics.device import Numerics
from tests.tiny import CPU, tiny_model


@pytest.fixture
def model() -> GPTModel:
    """Gives token 0 half the probability, tokens 1 and 2 a quarter each, at every position."""
    model = tiny_model()
    model.final_norm.weight.data.zero_()
    model.final_norm.bias.data.copy_(torch.eye(32)[0])
    model.out_head.weight.data.fill_(-1000.0)
    model.out_head.weight.data[:3, 0] = torch.tensor([2.0, 1.0, 1.0]).log()
    return model


def rows(*targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Batch of eight tokens whose targets are all the same, one row for each of `targets`."""
    wanted = np.repeat(np.array([targets], np.int64).T, 8, axis=1)
    return np.zeros_like(wanted), wanted


def test_loss_is_weighted_by_tokens_not_by_batches(model: GPTModel) -> None:
    # Batch of ln 2, ln 2 and ln 4 a token; batches of two and one: their means, ln 2 and 2 ln 2, have mean 1.5 ln 2.
    found = evaluate(model, *rows(0, 0, 1), batch_size=2, numerics=CPU)
    assert found.loss == pytest.approx(4 / 3 * math.log(2))
    assert found.num_tokens == 24


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_any_batch_size_gives_the_same_score(batch_size: int) -> None:
    stream = np.random.default_rng(0)
    inputs, targets = (stream.integers(0, 64, (5, 8)) for _ in range(2))
    found, whole = (
        evaluate(tiny_model(), inputs, targets, batch_size=size, numerics=CPU) for size in (batch_size, len(inputs))
    )
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (found.num_correct, found.num_tokens) == (whole.num_correct, 40)


def test_perplexity_accuracy_and_bits_per_byte(model: GPTModel) -> None:
    found = evaluate(model, *rows(0, 0, 1), batch_size=3, numerics=CPU)
    assert found.perplexity == pytest.approx(2 ** (4 / 3))
    assert found.num_correct == 16 and found.accuracy == pytest.approx(2 / 3)
    assert found.bits_per_byte(64) == pytest.approx((8 + 8 + 16) / 64)


def test_perplexity_of_a_huge_loss_is_infinite() -> None:
    assert EvalResult(2 * 800.0, 0, 2).perplexity == math.inf
    assert EvalResult(2 * 700.0, 0, 2).perplexity == pytest.approx(math.exp(700))


@pytest.mark.parametrize("training", [False, True])
def test_scoring_has_no_dropout_and_leaves_the_mode(training: bool) -> None:
    model = tiny_model(drop_rate=0.9).train(training)
    found = evaluate(model, *rows(5, 6), batch_size=2, numerics=CPU)
    assert model.training == model.trf_blocks[0].training == training
    assert found == evaluate(model.eval(), *rows(5, 6), batch_size=2, numerics=CPU)


def test_scoring_records_nothing_for_gradients() -> None:
    model, recorded = tiny_model(), []
    model.final_norm.register_forward_hook(lambda module, inputs, output: recorded.append(output.requires_grad))
    evaluate(model, *rows(5, 6), batch_size=2, numerics=CPU)
    assert recorded == [False]


def test_scoring_draws_nothing() -> None:
    model = tiny_model()
    before = torch.get_rng_state()
    evaluate(model, *rows(5), batch_size=2, numerics=CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_bf16_precision_is_used_and_close() -> None:
    model = tiny_model().eval()
    exact, rough = (
        evaluate(model, *rows(5, 6), batch_size=2, numerics=Numerics(torch.device("cpu"), precision, "torch"))
        for precision in ("fp32", "bf16")
    )
    assert rough.loss != exact.loss
    assert rough.loss == pytest.approx(exact.loss, rel=0.01)


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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_with_its_place(value: float) -> None:
    with pytest.raises(NonFiniteError, match=rf"^step 7: max_grad is {value}, not a finite number.*peak_lr"):
        require_finite({"loss": 1.0, "max_grad": value}, "step 7")


def test_what_is_finite_passes() -> None:
    require_finite({"loss": 0.0, "max_grad": -1e30}, "step 7")


def test_weights_that_are_not_finite_give_no_results(model: GPTModel) -> None:
    model.out_head.weight.data[0, 0] = math.nan
    ids = np.zeros(17, np.uint16)
    with pytest.raises(NonFiniteError, match="evaluation of the final weights: final_train_loss is nan"):
        final_results(model, load_encoding("gpt2"), ids, ids, batch_size=1, numerics=CPU)
