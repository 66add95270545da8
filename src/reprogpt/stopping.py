"""Ending at a moment of one's own choosing: after a signal, or when the DVC that started us is gone."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

from reprogpt.errors import OrphanedError, Terminated


class Stopping:
    """Whether this process is to stop, and by which exception.

    launcher: the process that started this one to share its work, if one did.
    """

    def __init__(self, launcher: psutil.Process | None = None) -> None:
        self.signal: int | None = None
        self._dvc, self._launcher = _dvc_above(), launcher

    def reason(self) -> BaseException | None:
        """What to raise at the next safe moment: KeyboardInterrupt after Ctrl-C, Terminated after SIGTERM,
        OrphanedError when DVC is gone; None to go on.
        """
        if self.signal is not None:
            return KeyboardInterrupt() if self.signal == signal.SIGINT else Terminated()
        if self._launcher and not _lives(self._launcher):
            return OrphanedError("the launcher of this process is gone; run the same command again to go on")
        if "DVC_STAGE" in os.environ and not (_lives(self._dvc) if self._dvc else _has_parent_of_its_session()):
            return OrphanedError("the dvc that started this stage is gone; run the same command again to go on")
        return None


@contextmanager
def stop_softly(launcher: psutil.Process | None = None, *, quiet: bool = False) -> Iterator[Stopping]:
    """Inside, the first Ctrl-C or SIGTERM only sets reason(); a second one ends at once, as outside.

    launcher: as in Stopping. It hands on the signal that it got, which this process may have got, too: here a second
    one changes nothing. quiet: another process says what the signal does.
    """
    stopping = Stopping(launcher)

    def remember(number: int, frame: FrameType | None) -> None:
        stopping.signal = number
        if not quiet:
            print("\nstopping after this step; once more to stop at once", file=sys.stderr)
        if launcher is None:
            for known, handler in before.items():
                signal.signal(known, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, remember)
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _dvc_above() -> psutil.Process | None:
    """The nearest process above this one that runs DVC; a shell may lie between. None if DVC is gone already, or
    was called from a program of another name.
    """
    try:
        return next((process for process in psutil.Process().parents() if _runs_dvc(process)), None)
    except psutil.Error:
        return None


def _runs_dvc(process: psutil.Process) -> bool:
    try:
        return any("dvc" in word.rpartition("/")[2].lower() for word in process.cmdline()[:4])
    except psutil.Error:
        return False


def _has_parent_of_its_session() -> bool:
    """False of a process whose parent is gone: whoever takes it over, such as process 1, is not of its session.

    In a container whose process 1 shares the session, a DVC that is killed while the stage is still loading is
    not missed.
    """
    try:
        return os.getsid(os.getppid()) == os.getsid(0)
    except OSError:
        return True


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
