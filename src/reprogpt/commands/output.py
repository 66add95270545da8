"""Standard output as a shell expects of a program: text at once, and a quiet end when the reader goes."""

import os
import sys

from reprogpt.errors import PipelineError

READER_GONE = 141  # 128 + SIGPIPE, what a shell reports of a program that the signal ended


def finish_output() -> None:
    """Send off what is still buffered.

    Raises BrokenPipeError where the reader is gone, PipelineError where it can't be written.
    """
    if sys.stdout is None:  # closed by the caller: `>&-`
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise PipelineError(f"standard output can't be written: {error.strerror}") from None


def drop_output() -> None:
    """From here on standard output goes nowhere: Python, which flushes it at the end, would complain once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
