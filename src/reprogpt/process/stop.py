"""Graceful shutdown: on a signal, or when the DVC process that started the stage has ended."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

from reprogpt.dvc.rwlock import pids_writing_outs
from reprogpt.errors import OrphanedError, Terminated
from reprogpt.messages import print_message


class StopRequest:
    """Whether this process was asked to stop, and with which exception.

    launcher: the torchrun process that started this worker, if any.
    """

    def __init__(self, launcher: psutil.Process | None = None) -> None:
        self.signal: int | None = None
        running = pids_writing_outs() if "DVC_STAGE" in os.environ else None
        self._dvc = _nearest_ancestor(running) if running is not None else None
        # DVC that is killed while the stage is still importing is no ancestor any more.
        self._is_run_by_dvc = running is not None
        self._launcher = launcher

    def reason(self) -> BaseException | None:
        """The exception to raise after the current step, None to continue.

        KeyboardInterrupt after Ctrl-C, Terminated after SIGTERM or SIGHUP, OrphanedError if the launcher or DVC has
        ended.
        """
        if self.signal is not None:
            return KeyboardInterrupt() if self.signal == signal.SIGINT else Terminated()
        if self._launcher and not _is_alive(self._launcher):
            return OrphanedError("the launcher of this process has ended; run the same command again to resume")
        if self._is_run_by_dvc and not (self._dvc and _is_alive(self._dvc)):
            return OrphanedError("the dvc process that started this stage has ended; run the same command to resume")
        return None


@contextmanager
def graceful_shutdown(launcher: psutil.Process | None = None, *, quiet: bool = False) -> Iterator[StopRequest]:
    """While the block runs, the first Ctrl-C, SIGTERM or SIGHUP only sets reason(); a second one has its usual effect.

    SIGHUP means that the terminal is gone. The shell and the system may both send it, so repeats are ignored. If it is
    ignored from the start, as under nohup, it stays ignored.

    launcher: as in StopRequest. torchrun forwards signals that the terminal may also have sent to this process, so a
    worker ignores the second one. quiet: don't announce the shutdown, because another process does.
    """
    request = StopRequest(launcher)
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if previous[signal.SIGHUP] is signal.SIG_IGN:
        del previous[signal.SIGHUP]

    def handle(number: int, frame: FrameType | None) -> None:
        request.signal = number
        if not quiet:
            print_message("\nstopping after this step; repeat to stop at once")
        if number == signal.SIGHUP:
            previous.pop(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        elif launcher is None:
            restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in list(previous):
        signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()


def _nearest_ancestor(pids: set[int]) -> psutil.Process | None:
    try:
        return next((process for process in psutil.Process().parents() if process.pid in pids), None)
    except psutil.Error:
        return None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
