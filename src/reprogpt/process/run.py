"""Runs a program to its end: exit codes, messages for errors that a user can cause, signals while modules load."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

from reprogpt.errors import (
    DataError,
    DeviceError,
    FetchError,
    NonFiniteError,
    OutOfMemoryError,
    ParamsError,
    PipelineError,
    ScheduleError,
    Terminated,
)
from reprogpt.messages import print_message

# Errors that a value in params.yaml can cause. DVC has removed the stage's outs before the stage ran.
_PARAMS_ERRORS = (ParamsError, FetchError, DataError, ScheduleError, DeviceError, OutOfMemoryError, NonFiniteError)


RESTORE_ADVICE = (
    "Nothing is lost: restore the previous value and run `dvc repro`, which restores every output without training."
)


def exit_on_signal_during_imports() -> None:
    """Until run_program, exit at once on Ctrl-C and SIGTERM, without a traceback from the middle of an import."""
    _quiet_matplotlib()
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is default:  # a shell ignores Ctrl-C for its background jobs
            signal.signal(number, _exit_at_once)


def run_program(main: Callable[[], object], *, is_restorable: Callable[[], bool] = lambda: False) -> NoReturn:
    """Run `main`, then exit: 0, or 2 with a message for a PipelineError, 130 for Ctrl-C, 143 for SIGTERM and SIGHUP.

    An integer that `main` returns is the exit code. Any other exception is a bug and keeps its traceback.
    is_restorable: asked after an error that a value in params.yaml can cause, whether the previous value would undo it.
    On standard output, `?` stands for what its encoding lacks: a model can produce any character.
    """
    _quiet_matplotlib()
    if isinstance(sys.stdout, TextIOWrapper):  # None if it is closed
        sys.stdout.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, _raise_terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, _raise_terminated)
    if signal.getsignal(signal.SIGINT) is _exit_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = main()
    except PipelineError as error:
        advice = f"\n{RESTORE_ADVICE}" if isinstance(error, _PARAMS_ERRORS) and is_restorable() else ""
        print_message(f"\nerror: {error}{advice}")
        sys.exit(2)
    except KeyboardInterrupt:
        print_message("\ninterrupted")
        sys.exit(130)
    except Terminated:
        print_message("\nterminated")
        sys.exit(143)
    sys.exit(result if isinstance(result, int) else 0)


def _quiet_matplotlib() -> None:
    """It says that it makes its list of fonts, or that the home folder can't be written to."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def _raise_terminated(signum: int, frame: FrameType | None) -> NoReturn:
    if signum == signal.SIGHUP:  # the shell and the system may both send it
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise Terminated


def _exit_at_once(signum: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + signum)
