"""Threads for `numerics: portable`, each of which runs torch's kernels without dividing them further.

torch divides an operation by the number of threads, and some of its kernels round the last entries of a thread's share
differently. Here the caller divides the work by its shape, and the pool only decides which thread runs a part.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

Task = Callable[[], object]

_pools: list[ThreadPoolExecutor] = []


def start_threads(num_threads: int) -> None:
    """Start the threads that run_tasks uses, if this was not done yet. With one, run_tasks uses the caller's."""
    if num_threads == 1 or _pools:
        return
    pool = ThreadPoolExecutor(num_threads, initializer=_use_one_thread)
    _pools.append(pool)
    # A pool starts a thread only when all others are busy: make all of them busy once.
    barrier = threading.Barrier(num_threads)
    run_tasks([barrier.wait] * num_threads)


def run_tasks(tasks: Sequence[Task]) -> None:
    """Run the tasks, in any order and at once; they must be independent. Raises what a task raises."""
    if not _pools:
        for task in tasks:
            task()
    else:
        # Also a single task: on the calling thread torch would divide it.
        list(_pools[0].map(_run_without_autograd, tasks))


def _run_without_autograd(task: Task) -> None:
    # Autograd is off in the caller, which is a kernel, but that is a setting of the caller's thread.
    with torch.no_grad():
        task()


def _use_one_thread() -> None:
    torch.get_num_threads()  # torch sets a new thread's number at the first call that asks for it, this one
    torch.set_num_threads(1)
