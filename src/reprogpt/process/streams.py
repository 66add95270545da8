"""Standard output and error whose reader may go away: a stage that runs for hours does not end for it."""

import errno
import io
import os
import sys
from typing import Any, TextIO

# The reader closed the pipe; the terminal is gone.
_READER_IS_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO)


def outlive_readers() -> None:
    """From here on, writing to standard output or error is quiet once nobody reads it, as with `| head`."""
    sys.stdout = _outliving(sys.stdout)
    sys.stderr = _outliving(sys.stderr)


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
