"""Standard output as a shell expects of a program: text at once, and a quiet end when the reader goes."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from reprogpt.errors import PipelineError

READER_GONE = 141  # 128 + SIGPIPE, what a shell reports of a program that the signal ended


def write_output(text: str) -> None:
    """Write text at once, as UTF-8 whatever the terminal's encoding: a model may say any character.

    Raises BrokenPipeError where the reader is gone, PipelineError where it can't be written.
    """
    if sys.stdout is None:  # closed by the caller: `>&-`
        raise PipelineError("standard output is closed")
    with _in_words():
        sys.stdout.buffer.write(text.encode("utf-8"))
        sys.stdout.buffer.flush()


def finish_output() -> None:
    """Send off what is still buffered. Raises as write_output does, but for a closed standard output."""
    if sys.stdout is not None:
        with _in_words():
            sys.stdout.flush()


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise PipelineError(f"standard output can't be written: {error.strerror}") from None


def drop_output() -> None:
    """From here on standard output goes nowhere: Python, which flushes it at the end, would complain once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
