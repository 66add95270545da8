"""Writing to standard output: unbuffered, and quiet when the reader closes the pipe."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from reprogpt.errors import PipelineError

EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it


def write_output(text: str) -> None:
    """Write text unbuffered, as UTF-8 whatever the terminal's encoding: a model can produce any character.

    Raises BrokenPipeError if the reader has closed the pipe, PipelineError if it can't be written otherwise.
    """
    if sys.stdout is None:  # closed by the caller: `>&-`
        raise PipelineError("standard output is closed")
    with _output_errors():
        sys.stdout.buffer.write(text.encode("utf-8"))
        sys.stdout.buffer.flush()


def flush_output() -> None:
    """Flush standard output. Raises as write_output does; a closed standard output is ignored."""
    if sys.stdout is not None:
        with _output_errors():
            sys.stdout.flush()


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise PipelineError(f"standard output can't be written: {error.strerror}") from None


def discard_output() -> None:
    """Redirect standard output to the null device: Python's flush at exit would report the error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
