"""Threads for `numerics: portable`, each of which runs torch's kernels without dividing them further.

torch divides an operation by the number of threads, and some of its kernels round the last entries of a thread's share
differently. Here the caller divides the work by its shape, and the pool only decides which thread runs a part.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

P = TypeVar("P")

_pools: list[ThreadPoolExecutor] = []


def start_threads(num_threads: int) -> None:
    """Start the threads that for_each uses, if this was not done yet. With one, for_each uses the caller's."""
    if num_threads == 1 or _pools:
        return
    pool = ThreadPoolExecutor(num_threads, initializer=_use_one_thread)
    _pools.append(pool)
    # A pool starts a thread only when all others are busy: make all of them busy once.
    barrier = threading.Barrier(num_threads)
    for _ in pool.map(lambda _: barrier.wait(), range(num_threads)):
        pass


def for_each(compute: Callable[[P], None], parts: Sequence[P]) -> None:
    """compute(part) for all parts, in any order and at once; they must be independent. Raises what it raises."""

    def without_autograd(part: P) -> None:
        # Autograd is off in the caller, which is a kernel, but that is a setting of the caller's thread.
        with torch.no_grad():
            compute(part)

    if not _pools:
        for part in parts:
            compute(part)
        return
    # Also a single part: on the calling thread torch would divide it.
    for _ in _pools[0].map(without_autograd, parts):
        pass


def _use_one_thread() -> None:
    torch.get_num_threads()  # torch sets a new thread's number at the first call that asks for it, this one
    torch.set_num_threads(1)
