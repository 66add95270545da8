"""Carries a box's records to the tracker while a stage works, in a thread that the stage never waits for."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from reprogpt.errors import OrphanedError, PipelineError, Terminated, TrackingError
from reprogpt.record.outbox import Box, waiting_boxes
from reprogpt.record.store import DeniedError, without_password
from reprogpt.record.tracking import deliver, is_for_this_store

DELIVER_SECONDS = 5.0  # between two deliveries; one for each step would cost ten times as much
PATIENCE_SECONDS = 10.0  # at the end, for a tracker that does not answer
MOST_SECONDS = 60.0  # between two attempts


@dataclass(frozen=True)
class Waiting:
    """How many records were delivered, and for which other stores records wait."""

    delivered: int
    elsewhere: list[str]


class Courier:
    """Delivers what waits from before, then this box, again and again until close()."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._wake, self._closing = threading.Event(), False
        self._failure: str | None = None
        self._denied = False  # the last attempt: another one won't help
        self._thread = threading.Thread(target=self._work, name="courier", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Deliver the rest, as long as that gets on; say what could not be, and give the box away."""
        self._closing = True
        self._wake.set()
        while self._thread.is_alive():  # in pieces: Ctrl-C must not wait
            self._thread.join(0.2)
        if error := self._box.write():
            print(f"{self._box.folder}: {error.strerror}; the last records are lost", file=sys.stderr)
        left = len(self._box.pending())
        if left:
            print(
                f"\nMLflow has not got the last {left} records of this run: {self._failure}\n"
                "They are kept. When the store answers again:  python -m reprogpt sync\n",
                file=sys.stderr,
            )
        self._box.release()

    def _work(self) -> None:
        delay, gives_up_at = 0.0, 0.0
        while True:
            self._wake.wait(delay)
            closing = self._closing
            if closing and not gives_up_at:
                gives_up_at = time.monotonic() + PATIENCE_SECONDS
            if self._deliver():
                if closing:
                    return
                delay = DELIVER_SECONDS
            elif closing and (self._denied or time.monotonic() > gives_up_at):
                return
            else:
                delay = min(MOST_SECONDS, max(1.0, 2 * delay))
            if closing:
                self._wake.clear()
                delay = min(delay, 1.0)

    def _deliver(self) -> bool:
        """Try once; say when that begins to fail, and when it ceases to."""
        try:
            self._box.write()
            deliver_waiting()
            deliver(self._box)
        except Exception as error:  # whatever a tracker does, training goes on
            said = str(error) if isinstance(error, TrackingError) else without_password(repr(error))
            if self._failure is None:
                print(
                    f"\n{said}\nThe work goes on; its records wait for the store in .reprogpt/outbox", file=sys.stderr
                )
            self._failure, self._denied = said, isinstance(error, DeniedError)
            return False
        if self._failure is not None:
            print("\nthe MLflow store answers again: nothing is missing", file=sys.stderr)
        self._failure = None
        return True


def deliver_waiting() -> Waiting:
    """Deliver what processes that are gone have left, oldest first.

    Raises TrackingError where the store can't be used.
    """
    delivered, elsewhere = 0, set()
    for box in waiting_boxes():
        try:
            if is_for_this_store(box):
                delivered += deliver(box)
            else:
                elsewhere.add(str(next(box.records())["store"]))
        finally:
            box.release()
    return Waiting(delivered, sorted(elsewhere))


@contextmanager
def carried(box: Box, adds: str | None = None) -> Iterator[None]:
    """Carry a box's records while the block works, and its end: FINISHED, or KILLED by Ctrl-C or SIGTERM or where
    DVC is gone, or FAILED by any other error, with a tag `error` where that is a message for a person.

    adds: for a box with results of a run, as in results.follow_results.
    """
    courier, end = Courier(box), {"status": "FAILED", "adds": adds}
    try:
        yield
        end["status"] = "FINISHED"
    except (KeyboardInterrupt, Terminated, OrphanedError):
        end["status"] = "KILLED"
        raise
    except PipelineError as error:  # a queued experiment has no terminal that would still show it
        end["error"] = str(error)
        raise
    finally:
        box.append("end", **end)
        courier.close()
