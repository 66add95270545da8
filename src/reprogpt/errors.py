"""The errors a user can cause or meet, and how a program ends on them."""

import os
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


class OrphanedError(PipelineError):
    """The DVC process that started a stage is gone."""


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt, no ordinary `except` swallows it."""


# What a value in params.yaml can lead to. DVC has removed the stage's outs before it ran.
_OF_A_VALUE = (ParamsError, FetchError, DataError, ScheduleError, DeviceError, NonFiniteError)
WAY_BACK = (
    "Nothing is lost: put the former value back and run `dvc repro`, which restores every output, byte for byte,\n"
    "without training."
)


def end_quietly_while_loading() -> None:
    """From here until run_program, Ctrl-C and SIGTERM end the program at once, with no traceback out of an import."""
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is default:  # a shell's background job has Ctrl-C ignored
            signal.signal(number, _exit_at_once)


def run_program(main: Callable[[], object]) -> NoReturn:
    """Run `main`, then exit: 0, or 2 with one message for a PipelineError, 130 for Ctrl-C, 143 for SIGTERM.

    Any other exception is a bug of ours and keeps its traceback. An integer that `main` returns
    is the exit code.
    """
    signal.signal(signal.SIGTERM, _raise_terminated)
    if signal.getsignal(signal.SIGINT) is _exit_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = main()
    except PipelineError as error:
        in_dvc = isinstance(error, _OF_A_VALUE) and "DVC_STAGE" in os.environ
        print(f"\nerror: {error}" + (f"\n{WAY_BACK}" if in_dvc else ""), file=sys.stderr)
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


def _exit_at_once(signum: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + signum)
