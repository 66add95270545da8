"""Losses over rows, weighted by tokens."""

import math

import numpy as np
import pytest
import torch

from reprogpt.errors import NonFiniteError
from reprogpt.evaluation.losses import LossSums, require_finite, sum_losses
from reprogpt.model.gpt import GPTModel
from reprogpt.numerics.device import Numerics
from tests.tiny import CPU, model_with_odds, tiny_model


@pytest.fixture
def model() -> GPTModel:
    """Gives token 0 half the probability, tokens 1 and 2 a quarter each, at every position."""
    return model_with_odds({0: 2.0, 1: 1.0, 2: 1.0})


def rows(*targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of rows of eight tokens: a row for each of `targets`, whose targets are all that one."""
    wanted = np.repeat(np.array([targets], np.int64).T, 8, axis=1)
    return np.zeros_like(wanted), wanted


def test_loss_is_weighted_by_tokens_not_by_batches(model: GPTModel) -> None:
    # Rows of ln 2, ln 2 and ln 4 a token; batches of two and one: their means, ln 2 and 2 ln 2, have mean 1.5 ln 2.
    result = sum_losses(model, *rows(0, 0, 1), batch_size=2, numerics=CPU)
    assert result.loss == pytest.approx(4 / 3 * math.log(2))
    assert result.num_tokens == 24


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_any_batch_size_gives_the_same_result(batch_size: int) -> None:
    generator = np.random.default_rng(0)
    inputs, targets = (generator.integers(0, 64, (5, 8)) for _ in range(2))
    result, whole = (
        sum_losses(tiny_model(), inputs, targets, batch_size=size, numerics=CPU) for size in (batch_size, len(inputs))
    )
    assert result.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (result.num_correct, result.num_tokens) == (whole.num_correct, 40)


def test_perplexity_accuracy_and_bits_per_byte(model: GPTModel) -> None:
    result = sum_losses(model, *rows(0, 0, 1), batch_size=3, numerics=CPU)
    assert result.perplexity == pytest.approx(2 ** (4 / 3))
    assert result.num_correct == 16 and result.accuracy == pytest.approx(2 / 3)
    assert result.bits_per_byte(64) == pytest.approx((8 + 8 + 16) / 64)


def test_perplexity_of_a_huge_loss_is_infinite() -> None:
    assert LossSums(2 * 800.0, 0, 2).perplexity == math.inf
    assert LossSums(2 * 700.0, 0, 2).perplexity == pytest.approx(math.exp(700))


@pytest.mark.parametrize("training", [False, True])
def test_evaluating_has_no_dropout_and_restores_the_mode(training: bool) -> None:
    model = tiny_model(drop_rate=0.9).train(training)
    result = sum_losses(model, *rows(5, 6), batch_size=2, numerics=CPU)
    assert model.training == model.trf_blocks[0].training == training
    assert result == sum_losses(model.eval(), *rows(5, 6), batch_size=2, numerics=CPU)


def test_evaluating_records_no_graph() -> None:
    model, recorded = tiny_model(), []
    model.final_norm.register_forward_hook(lambda module, inputs, output: recorded.append(output.requires_grad))
    sum_losses(model, *rows(5, 6), batch_size=2, numerics=CPU)
    assert recorded == [False]


def test_evaluating_draws_nothing() -> None:
    model = tiny_model()
    before = torch.get_rng_state()
    sum_losses(model, *rows(5), batch_size=2, numerics=CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_bf16_precision_is_used_and_close() -> None:
    model = tiny_model().eval()
    exact, rough = (
        sum_losses(model, *rows(5, 6), batch_size=2, numerics=Numerics(torch.device("cpu"), precision, "torch"))
        for precision in ("fp32", "bf16")
    )
    assert rough.loss != exact.loss
    assert rough.loss == pytest.approx(exact.loss, rel=0.01)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named_with_its_step(value: float) -> None:
    with pytest.raises(NonFiniteError, match=rf"^step 7: max_grad is {value}, not a finite number.*peak_lr"):
        require_finite({"loss": 1.0, "max_grad": value}, "step 7")


def test_finite_values_pass() -> None:
    require_finite({"loss": 0.0, "max_grad": -1e30}, "step 7")
