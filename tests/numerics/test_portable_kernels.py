"""The kernels of portable numerics compute what torch's do."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from reprogpt.numerics import portable_kernels


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts of each tensor, and a last one that fills no vector."""
    monkeypatch.setattr(portable_kernels, "PART", 128)
    monkeypatch.setattr(portable_kernels, "NORM_ROWS", 4)
    monkeypatch.setattr(portable_kernels, "SUM_COLUMNS", 16)


def test_gelu_and_its_gradient() -> None:
    values, grad = numbers(3, 99).requires_grad_(), numbers(99, 3).view(3, 99)
    expected = functional.gelu(values, approximate="tanh")
    expected.backward(grad)
    found = portable_kernels._gelu(values.detach(), approximate="tanh")
    torch.testing.assert_close(found, expected.detach())
    gradient = portable_kernels._gelu_backward(grad, values.detach(), approximate="tanh")
    torch.testing.assert_close(gradient, values.grad)


@pytest.mark.parametrize("mask", [(True, True, True), (True, False, False)])
def test_gradients_of_layer_norm(mask: tuple[bool, bool, bool]) -> None:
    values, weight, bias, grad = numbers(2, 7, 33), numbers(33), numbers(33), numbers(7, 2, 33).view(2, 7, 33)
    _, mean, rstd = torch.native_layer_norm(values, [33], weight, bias, 1e-5)
    arguments = (grad, values, [33], mean, rstd, weight, bias)
    expected = torch.ops.aten.native_layer_norm_backward(*arguments, list(mask))
    found = portable_kernels._layer_norm_backward()(*arguments, mask)
    for is_wanted, one, other in zip(mask, found, expected, strict=True):
        assert (one is not None) == is_wanted
        if is_wanted:
            torch.testing.assert_close(one, other)


def test_gradient_of_softmax() -> None:
    output, grad = torch.softmax(numbers(2, 9, 50), -1), numbers(9, 2, 50).view(2, 9, 50)
    expected = torch.ops.aten._softmax_backward_data(grad, output, -1, torch.float32)
    torch.testing.assert_close(portable_kernels._softmax_backward(grad, output, -1, torch.float32), expected)


@pytest.mark.parametrize("keepdim", [False, True])
def test_sums_of_rows(keepdim: bool) -> None:
    values = numbers(40, 37)
    torch.testing.assert_close(portable_kernels._sum(values, [0], keepdim), values.sum([0], keepdim=keepdim))


@pytest.mark.parametrize(
    ("values", "dim"),
    [(torch.arange(6).view(2, 3), [0]), (torch.tensor([True, True]), None), (torch.ones(2, 3, 4), [1])],
)
def test_other_sums_are_torchs(values: Tensor, dim: list[int] | None) -> None:
    expected = values.sum() if dim is None else values.sum(dim)
    found = portable_kernels._sum(values, dim)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_log_is_the_float32_next_to_the_logarithm() -> None:
    values = torch.cat([numbers(1000).abs(), torch.tensor([1e-45, 1e-30, 0.5, 1.0, math.sqrt(0.5), 2.0, 3e38])])
    expected = torch.tensor([math.log(value) for value in values.tolist()], dtype=torch.float32)
    assert torch.equal(portable_kernels._log(values), expected)


def test_log_at_its_limits_and_of_integers() -> None:
    values = torch.tensor([0.0, -1.0, math.inf, math.nan])
    torch.testing.assert_close(portable_kernels._log(values), values.log(), equal_nan=True)
    torch.testing.assert_close(portable_kernels._log(torch.tensor([1, 8])), torch.tensor([1, 8]).log())
