"""Standard output and standard error when they are closed, full, or no longer read."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from reprogpt.errors import PipelineError

EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it
# The reader closed the pipe; the terminal is gone.
_READER_IS_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO)


def outlive_readers() -> None:
    """From here on, ignore output that nobody reads any more: a stage that runs for hours must not fail over it.

    Applies to standard output and standard error, also of child processes.
    """
    sys.stdout = _outliving(sys.stdout)
    sys.stderr = _outliving(sys.stderr)


def write_output(text: str) -> None:
    """Write text to standard output, unbuffered, as UTF-8 even if the terminal's encoding is another.

    Raises BrokenPipeError if the reader has closed the pipe, PipelineError if the text can't be written otherwise.
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


def discard_output() -> None:
    """Redirect standard output to the null device: Python's flush at exit would report the error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise PipelineError(f"standard output can't be written: {error.strerror}") from None


def _outliving(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):  # None if it is closed, or replaced by a program that imports this
        return stream
    stream.flush()
    # Unbuffered below the text: nothing that failed is written again when the program exits.
    file: Any = _OutlivingFile(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        file, encoding=stream.encoding, errors=stream.errors, line_buffering=True, write_through=stream.write_through
    )


class _OutlivingFile(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in _READER_IS_GONE:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # for libraries and child processes, too
        os.close(nowhere)
        return len(data)
