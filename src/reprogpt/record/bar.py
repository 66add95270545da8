"""A bar for what goes through a stage in bytes: on a terminal only."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def byte_bar(name: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """Show a bar while the block runs; the block calls what it is given with each number of bytes done.

    total: bytes in all, None if unknown.
    """
    with tqdm(
        desc=name,
        total=total,
        unit="B",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        leave=False,
    ) as bar:
        yield bar.update
