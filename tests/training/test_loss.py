"""Output head and cross-entropy as one operation, against the two as separate ones."""

import pytest
import torch
from torch.nn import functional

from reprogpt.training.loss import head_loss

TARGETS = torch.tensor([3, 0, 3, 15, 7, 7])


def operands(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Six hidden states of width 5, and an output head of 16 tokens."""
    generator = torch.Generator().manual_seed(0)
    hidden = scale * torch.randn(6, 5, generator=generator)
    weight = torch.randn(16, 5, generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def separate_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight), targets)


def test_two_equally_likely_tokens_have_a_loss_of_log_two() -> None:
    hidden, weight = torch.ones(1, 1, requires_grad=True), torch.ones(2, 1, requires_grad=True)
    loss = head_loss(hidden, weight, torch.tensor([1]))
    torch.autograd.backward(loss)
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    assert loss.item() == pytest.approx(0.693147)
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.5], [-0.5]]


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_value_and_gradients_are_those_of_separate_operations(scale: float) -> None:
    ours, exact = operands(scale), operands(scale, torch.float64)
    one, other = head_loss(*ours, TARGETS), separate_loss(*exact, TARGETS)
    torch.autograd.backward(one * 3)
    torch.autograd.backward(other * 3)
    assert one.item() == pytest.approx(other.item(), rel=1e-6)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert (mine.grad.double() - theirs.grad).abs().max() < 1e-6 * theirs.grad.abs().max()


def test_a_target_of_probability_zero_has_a_finite_loss() -> None:
    """Its probability, exp(-1000), is 0 as a float."""
    hidden, weight = torch.full((1, 1), 1000.0, requires_grad=True), torch.tensor([[0.0], [1.0]], requires_grad=True)
    loss = head_loss(hidden, weight, torch.tensor([0]))
    torch.autograd.backward(loss)
    assert loss.item() == 1000
    assert weight.grad is not None
    assert weight.grad.tolist() == [[-1000.0], [1000.0]]


def test_nan_is_not_hidden() -> None:
    hidden, weight = operands()
    with torch.no_grad():
        hidden[2, 1] = torch.nan
    assert head_loss(hidden, weight, TARGETS).isnan()


def test_under_autocast_matrix_products_use_its_dtype() -> None:
    ours, theirs = operands(), operands()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one, other = head_loss(*ours, TARGETS), separate_loss(*theirs, TARGETS)
    torch.autograd.backward(one)
    torch.autograd.backward(other)
    assert one.dtype == torch.float32
    assert one.item() == pytest.approx(other.item(), rel=1e-5)
    assert one.item() != head_loss(*operands(), TARGETS).item()
    for mine, theirs_ in zip(ours, theirs, strict=True):
        assert mine.grad is not None and theirs_.grad is not None
        torch.testing.assert_close(mine.grad, theirs_.grad, rtol=0, atol=0.004)  # bf16 has 8 bits


def test_a_second_derivative_is_refused_not_wrong() -> None:
    hidden, weight = operands()
    [gradient] = torch.autograd.grad(head_loss(hidden, weight, TARGETS), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.backward(gradient.sum())


def test_the_operands_are_left_unchanged() -> None:
    hidden, weight = operands()
    before = hidden.detach().clone(), weight.detach().clone()
    torch.autograd.backward(head_loss(hidden, weight, TARGETS))
    assert torch.equal(hidden, before[0]) and torch.equal(weight, before[1])
