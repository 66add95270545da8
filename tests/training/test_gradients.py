"""Statistics of a step's gradients, and the divisor that clips them."""

import pytest
import torch
from torch import nn

from reprogpt.training.gradients import gradient_stats


def with_grads(*grads: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(grad))) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = torch.tensor(grad)
    return parameters


def grads_of(parameters: list[nn.Parameter]) -> list[list[float]]:
    return [parameter.grad.tolist() for parameter in parameters if parameter.grad is not None]


def random_parameters(seed: int, scale: float) -> list[nn.Parameter]:
    """Two parameters with normal gradients; every third seed gives negative ones only."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.zeros(7, 5)), nn.Parameter(torch.zeros(11))]
    for parameter in parameters:
        grad = scale * torch.randn(parameter.shape, generator=generator)
        parameter.grad = -grad.abs() if seed % 3 == 0 else grad
    return parameters


def clipped(parameters: list[nn.Parameter], max_norm: float) -> list[list[float]]:
    """The gradients after an optimizer that doesn't change the weights has divided them."""
    optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True)
    optimizer.grad_scale = gradient_stats(parameters, max_norm)[1]  # type: ignore[attr-defined]
    optimizer.step()
    return grads_of(parameters)


def test_three_and_four_have_norm_five_and_are_divided_by_five() -> None:
    parameters = with_grads([-3.0, 0.0], [4.0])
    stats, divisor = gradient_stats(parameters, 1.0)
    assert (stats.shape, stats.dtype) == ((3,), torch.float32)
    assert stats.tolist() == pytest.approx([4.0, 0.8, 5.0])
    assert divisor is not None
    assert divisor.item() == pytest.approx(5)
    assert grads_of(parameters) == [[-3.0, 0.0], [4.0]]
    assert clipped(parameters, 1.0) == [pytest.approx([-0.6, 0.0]), pytest.approx([0.8])]


def test_max_grad_is_the_largest_signed_entry_not_the_largest_size() -> None:
    assert gradient_stats(with_grads([-3.0, 2.0], [1.0]), None)[0][0] == 2
    assert gradient_stats(with_grads([-3.0, -2.0], [-4.0]), None)[0][0] == -2


def test_none_clips_nothing() -> None:
    stats, divisor = gradient_stats(with_grads([-3.0, 0.0], [4.0]), None)
    assert stats.tolist() == [4.0, 4.0, 5.0]
    assert divisor is None


def test_gradients_below_the_bound_stay() -> None:
    parameters = with_grads([-3.0, 0.0], [4.0])
    stats, divisor = gradient_stats(parameters, 6.0)
    assert stats.tolist() == [4.0, 4.0, 5.0]
    assert divisor == 1
    assert clipped(parameters, 6.0) == [[-3.0, 0.0], [4.0]]


def test_a_parameter_without_gradient_is_passed_over() -> None:
    parameters = [nn.Parameter(torch.ones(3)), *with_grads([-3.0, 4.0])]
    assert gradient_stats(parameters, 1.0)[0].tolist() == pytest.approx([4.0, 0.8, 5.0])
    assert parameters[0].grad is None


def test_parameters_may_come_from_a_generator() -> None:
    assert gradient_stats((p for p in with_grads([-3.0, 4.0])), 1.0)[0][2] == 5


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("scale", [0.001, 1.0, 1000.0])
def test_max_grad_clipped_is_what_a_scan_of_the_divided_gradients_finds_to_the_bit(seed: int, scale: float) -> None:
    parameters = random_parameters(seed, scale)
    largest, largest_clipped, _ = gradient_stats(parameters, 0.5)[0].tolist()
    assert largest == max(entry for grad in grads_of(parameters) for entry in torch.tensor(grad).flatten().tolist())
    second_scan = max(entry for grad in clipped(parameters, 0.5) for entry in torch.tensor(grad).flatten().tolist())
    assert largest_clipped == second_scan


@pytest.mark.parametrize("scale", [0.001, 1.0, 1000.0])
def test_norm_is_torchs_to_the_bit_and_clipped_gradients_to_rounding(scale: float) -> None:
    ours, theirs = random_parameters(1, scale), random_parameters(1, scale)
    assert gradient_stats(ours, 0.5)[0][2] == nn.utils.clip_grad_norm_(theirs, 0.5)
    clipped(ours, 0.5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=3e-7, atol=0)


def test_nan_is_measured_not_hidden() -> None:
    assert gradient_stats(with_grads([1.0, torch.nan]), 1.0)[0].isnan().tolist() == [True, True, True]
