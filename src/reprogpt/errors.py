"""The errors a user can cause or meet, and how a program ends on them."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


class PipelineError(Exception):
    """Something a person can put right. The message says what, which value, which bound, what to do."""


class ParamsError(PipelineError):
    """A value in params.yaml, or the file itself, is not usable."""


class FetchError(PipelineError):
    """The corpus could not be had, or is not the one that was asked for."""


class UnreachableError(FetchError):
    """The host did not answer at all: name, connection, time-out or proxy."""


class DataError(PipelineError):
    """A text or token file does not hold what its reader needs."""


class CheckpointError(PipelineError):
    """Files in a model directory are cut, foreign, or do not fit together."""


class ScheduleError(PipelineError):
    """A learning-rate schedule was asked for outside its bounds."""


class DeviceError(PipelineError):
    """The device or arithmetic asked for does not exist on this machine."""


class NonFiniteError(PipelineError):
    """Training met a loss or gradient that is not a number."""


class TrackingError(PipelineError):
    """The MLflow store can't be used."""


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt, no ordinary `except` swallows it."""


def run_program(main: Callable[[], object]) -> NoReturn:
    """Run `main`, then exit: 0, or 2 with one message for a PipelineError, 130 for Ctrl-C, 143 for SIGTERM.

    Any other exception is a bug of ours and keeps its traceback. An integer that `main` returns
    is the exit code.
    """
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        result = main()
    except PipelineError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except Terminated:
        print("\nterminated", file=sys.stderr)
        sys.exit(143)
    sys.exit(result if isinstance(result, int) else 0)


def _raise_terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated
