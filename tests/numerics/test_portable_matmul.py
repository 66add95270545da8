"""Matrix products by numpy, divided into blocks."""

from collections.abc import Iterator

import pytest
import torch

from reprogpt.numerics import portable_matmul
from reprogpt.numerics.portable_matmul import block_bounds, matmul, restore_torch_matmul, route_matmul_to_numpy


@pytest.fixture
def routed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Matrix products by numpy, in blocks so small that these tests have many."""
    monkeypatch.setattr(portable_matmul, "BLOCK_SIZE", 1000)
    monkeypatch.setattr(portable_matmul, "MIN_WIDTH", 16)
    route_matmul_to_numpy(2)
    yield
    restore_torch_matmul()


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 4), (4, 5)), ((1, 70), (70, 300)), ((200, 7), (7, 33)), ((64, 9, 8), (64, 8, 7)), ((2, 90, 8), (2, 8, 90))],
)
def test_products_are_those_of_float64_to_rounding(left: tuple[int, ...], right: tuple[int, ...], routed: None) -> None:
    a, b = numbers(*left), numbers(*right)
    exact = torch.einsum("...nk,...km->...nm", a.double(), b.double())
    for one in (a, a.mT.contiguous().mT):
        torch.testing.assert_close(matmul(one, b).double(), exact, rtol=0, atol=1e-5)


def test_layers_and_their_gradients_use_it(routed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    original = portable_matmul.block_bounds

    def recording(shape: tuple[int, ...], depth: int) -> tuple[int, list[int]]:
        shapes.append(shape)
        return original(shape, depth)

    monkeypatch.setattr(portable_matmul, "block_bounds", recording)
    layer = torch.nn.Linear(6, 7)
    values = numbers(2, 5, 6).requires_grad_()
    (layer(values) @ numbers(2, 7, 3)).sum().backward()
    assert sorted(shapes) == sorted([(10, 7), (2, 5, 3), (2, 5, 7), (10, 6), (7, 6)])


def test_gradients_are_torchs_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, values = torch.nn.Linear(60, 70), numbers(2, 50, 60)

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(torch.tanh(layer(values)).square().sum(), list(layer.parameters())))

    torchs = gradients()
    monkeypatch.setattr(portable_matmul, "BLOCK_SIZE", 1000)
    monkeypatch.setattr(portable_matmul, "MIN_WIDTH", 16)
    route_matmul_to_numpy(2)
    try:
        for ours, theirs in zip(gradients(), torchs, strict=True):
            torch.testing.assert_close(ours, theirs)
    finally:
        restore_torch_matmul()


def test_restoring_torchs_matmul_ends_it(routed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    restore_torch_matmul()
    monkeypatch.setattr(portable_matmul, "block_bounds", None)  # would fail if it were called
    assert (numbers(2, 3) @ numbers(3, 2)).shape == (2, 2)


@pytest.mark.parametrize(
    ("shape", "depth", "axis", "bounds"),
    [
        ((512, 768), 768, -1, [0, 153, 307, 460, 614, 768]),  # 302 million multiplications
        ((768, 96), 512, -2, [0, 768]),
        ((2, 50257), 768, -1, [0, 25128, 50257]),
        ((512, 768), 50257, -1, [0, 128, 256, 384, 512, 640, 768]),  # not 64 thin ones
        ((24, 256, 256), 64, -3, [0, 12, 24]),
        ((1, 4096, 512), 64, -2, [0, 1365, 2730, 4096]),
        ((0, 5), 7, -1, [0, 5]),
    ],
)
def test_how_a_product_is_divided_into_blocks(shape: tuple[int, ...], depth: int, axis: int, bounds: list[int]) -> None:
    assert block_bounds(shape, depth) == (axis, bounds)
