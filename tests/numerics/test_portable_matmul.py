"""Products by their definition, and how a library is called so that it keeps it."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch

from reprogpt.numerics import portable_matmul
from reprogpt.numerics.portable_matmul import (
    Library,
    choose_library,
    keeps_definition,
    reference_product,
    split_evenly,
)


@pytest.fixture(autouse=True)
def matmul_setting_restored() -> Iterator[None]:
    backend = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    yield
    backend.fp32_precision = before


def numbers(*shape: int) -> np.ndarray:
    return portable_matmul._numbers(np.random.default_rng(sum(shape)), *shape)


def test_the_reference_is_the_definition_in_exact_fractions() -> None:
    left, right, term = numbers(1, 400), numbers(400, 1), numbers(1, 1)
    total = Fraction(float(term[0, 0]))
    for start in (0, 192, 384):
        chain = Fraction(0)
        for place in range(start, min(start + 192, 400)):
            exact = chain + Fraction(float(left[0, place])) * Fraction(float(right[place, 0]))
            chain = Fraction(float(np.float32(float(exact))))
        total = Fraction(float(np.float32(float(total + chain))))
    assert reference_product(left, right, term)[0, 0] == float(total)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3, 4), (4, 5)),
        ((1, 70), (70, 300)),
        ((200, 7), (7, 33)),
        ((40, 400), (400, 90)),
        ((64, 9, 8), (64, 8, 7)),
        ((2, 90, 8), (2, 8, 90)),
        ((5, 0), (0, 20)),
    ],
)
@pytest.mark.parametrize("library", [Library("", "none"), Library("", "none", num_strips=3, adds_in_blocks=True)])
def test_products_are_those_of_float64_to_rounding(
    left: tuple[int, ...], right: tuple[int, ...], library: Library
) -> None:
    a, b = torch.from_numpy(numbers(*left)), torch.from_numpy(numbers(*right))
    exact = torch.matmul(a.double(), b.double())
    term = torch.from_numpy(numbers(*exact.shape[-2:]))
    for one in (a, a.mT.contiguous().mT):
        torch.testing.assert_close(library.matmul(one, b).double(), exact, rtol=0, atol=1e-4)
        torch.testing.assert_close(library.matmul(one, b, term).double(), exact + term, rtol=0, atol=1e-4)


def test_a_library_that_adds_in_another_order_does_not_keep_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library("exact", "none")

    def exact(self: Library, left: torch.Tensor, right: torch.Tensor, term: torch.Tensor | float = 0) -> torch.Tensor:
        return (left.double() @ right.double() + term).float()

    monkeypatch.setattr(Library, "matmul", exact)
    assert not keeps_definition(library)


def test_a_library_that_keeps_the_definition_is_found_to() -> None:
    class ByDefinition(Library):
        def matmul(self, left: torch.Tensor, right: torch.Tensor, term: torch.Tensor | None = None) -> torch.Tensor:
            added = None if term is None else term.numpy()
            return torch.from_numpy(reference_product(left.numpy(), right.numpy(), added))

    assert keeps_definition(ByDefinition("", "none"))


@pytest.mark.parametrize(
    ("keeping", "prefers_onednn", "chosen"),
    [
        ({"oneDNN", "MKL"}, True, "oneDNN"),
        ({"oneDNN", "MKL"}, False, "MKL"),
        ({"MKL"}, True, "MKL"),
        ({"oneDNN"}, False, None),
        (set(), True, None),
    ],
)
def test_the_first_library_that_keeps_the_definition_is_chosen(
    keeping: set[str], prefers_onednn: bool, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable_matmul, "keeps_definition", lambda library: library.name in keeping)
    library = choose_library(prefers_onednn=prefers_onednn, num_threads=2)
    assert (library.name if library else None) == chosen


def test_mkl_divides_k_itself_only_where_its_blocks_are_the_defined_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable_matmul, "keeps_definition", lambda library: not library.adds_in_blocks)
    library = choose_library(prefers_onednn=False, num_threads=2)
    assert library == Library("MKL", "none", num_strips=2)


@pytest.mark.parametrize(
    ("length", "num_parts", "least", "bounds"),
    [
        (10, 3, 1, [0, 3, 6, 10]),
        (50, 16, 16, [0, 16, 33, 50]),
        (5, 2, 16, [0, 5]),
        (2, 7, 1, [0, 1, 2]),
        (0, 4, 1, [0, 0]),
    ],
)
def test_lengths_are_split_evenly(length: int, num_parts: int, least: int, bounds: list[int]) -> None:
    slices = split_evenly(length, num_parts, least)
    assert [0, *(part.stop for part in slices)] == bounds
    assert [part.start for part in slices] == bounds[:-1]
