"""Threads that run torch's kernels undivided."""

import threading
from collections.abc import Iterator

import pytest
import torch

from reprogpt.numerics import thread_pool
from reprogpt.numerics.thread_pool import for_each, start_threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    start_threads(2)
    yield
    thread_pool._pools.pop().shutdown()


def test_each_part_is_computed_by_a_thread_that_torch_does_not_divide(two_threads: None) -> None:
    found: dict[int, tuple[int, bool]] = {}
    both_run = threading.Barrier(2)

    def compute(part: int) -> None:
        both_run.wait(60)
        found[part] = (torch.get_num_threads(), torch.is_grad_enabled())

    before = torch.get_num_threads()
    for_each(compute, range(4))
    assert found == dict.fromkeys(range(4), (1, False))
    assert torch.get_num_threads() == before


def test_an_error_of_a_part_is_raised(two_threads: None) -> None:
    def fail(part: int) -> None:
        raise ValueError(part)

    with pytest.raises(ValueError, match="0"):
        for_each(fail, range(3))


def test_with_one_thread_the_caller_computes() -> None:
    start_threads(1)
    callers: list[int] = []
    for_each(lambda part: callers.append(threading.get_ident()), range(2))
    assert callers == [threading.get_ident()] * 2
