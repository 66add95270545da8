"""Run a program and exit: exit codes, messages of errors that a user can cause, signals during imports."""

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

# Errors that a value in params.yaml can cause. DVC removes a stage's outs before it runs the stage.
_PARAMS_ERRORS = (ParamsError, FetchError, DataError, ScheduleError, DeviceError, OutOfMemoryError, NonFiniteError)
RESTORE_ADVICE = (
    "Nothing is lost: restore the previous value and run `dvc repro`, which restores every output without training."
)


def exit_on_signal_during_imports() -> None:
    """Until run_program is called, exit on Ctrl-C and SIGTERM at once, without a traceback from within an import."""
    _quiet_matplotlib()
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is default:  # a shell ignores Ctrl-C for its background jobs
            signal.signal(number, _exit_at_once)


def run_program(main: Callable[[], object], *, is_restorable: Callable[[], bool] = lambda: False) -> NoReturn:
    """Run `main`, then exit with the integer that it returns, or 0.

    Exits with 2 and a message after a PipelineError, 130 after Ctrl-C, 143 after SIGTERM and SIGHUP. Any other
    exception is a bug and keeps its traceback. Standard output prints `?` for characters that its encoding lacks: a
    model can produce any character.

    is_restorable: called after an error that a value in params.yaml can cause; returns whether the previous value
    restores the stage's outs.
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
    """Hide its messages about its list of fonts and about a home folder that can't be written."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def _raise_terminated(signum: int, frame: FrameType | None) -> NoReturn:
    if signum == signal.SIGHUP:  # the shell and the system may both send it
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise Terminated


def _exit_at_once(signum: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + signum)
