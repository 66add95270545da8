"""Uploads queued records to MLflow in a background thread, which the stage never waits for."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from reprogpt.errors import OrphanedError, PipelineError, Terminated, TrackingError
from reprogpt.messages import print_message
from reprogpt.paths import state_dir
from reprogpt.tracking.deliver.outbox import OutboxFile, abandoned_outboxes
from reprogpt.tracking.deliver.records import End, Status
from reprogpt.tracking.deliver.writer import upload
from reprogpt.tracking.store.client import open_store
from reprogpt.tracking.store.errors import RecordError, SettingsError
from reprogpt.urls import redact

UPLOAD_INTERVAL = 5.0  # seconds; an upload per step would cost ten times as much
CLOSE_TIMEOUT = 10.0  # seconds to keep trying at the end if the store does not answer
MAX_RETRY_INTERVAL = 60.0  # seconds


@dataclass(frozen=True)
class AbandonedUploads:
    """num_uploaded: records. set_aside: of each outbox with records that can't be uploaded, what and why.

    waiting: of each outbox that is not uploaded, why: the store failed, or its records are for another store.
    """

    num_uploaded: int
    set_aside: list[str]
    waiting: list[str]


class Uploader:
    """Uploads the outboxes of earlier processes, then this one, repeatedly until close()."""

    def __init__(self, outbox: OutboxFile) -> None:
        self._outbox = outbox
        self._wake = threading.Event()
        self._closing = False
        self._failure: str | None = None
        self._is_permanent = False  # of the latest attempt: retrying won't help
        self._reported: set[str] = set()  # why earlier runs' records wait
        self._thread = threading.Thread(target=self._run, name="mlflow-uploader", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Upload the rest while that makes progress, report what could not be uploaded, and release the outbox."""
        self._closing = True
        self._wake.set()
        while self._thread.is_alive():  # with a timeout: Ctrl-C must not wait
            self._thread.join(0.2)
        error = self._outbox.flush()
        if error:
            print_message(f"{self._outbox.folder}: {error.strerror}; the last records are lost")
        with self._outbox.note_losses("whether all is in MLflow"):
            self._report_rest()
        self._outbox.release()

    def _report_rest(self) -> None:
        num_left = self._outbox.num_pending
        if num_left:
            print_message(
                f"\nThe last {num_left} records of this run are not in MLflow: {self._failure}\n"
                "They are kept. Upload them when the store is available:  python -m reprogpt sync\n"
            )
        num_set_aside = len(self._outbox.set_aside())
        if num_set_aside:
            print_message(
                f"\n{num_set_aside} records of this run were refused and are kept in {self._outbox.folder}.\n"
                "Fix the cause, then upload them:  python -m reprogpt sync\n"
            )

    def _run(self) -> None:
        delay = 0.0
        give_up_at = 0.0
        while True:
            self._wake.wait(delay)
            closing = self._closing
            if closing and not give_up_at:
                give_up_at = time.monotonic() + CLOSE_TIMEOUT
            if self._try_upload():
                if closing:
                    return
                delay = UPLOAD_INTERVAL
            elif closing and (self._is_permanent or time.monotonic() > give_up_at):
                return
            else:
                delay = min(MAX_RETRY_INTERVAL, max(1.0, 2 * delay))
            if closing:
                self._wake.clear()
                delay = min(delay, 1.0)

    def _try_upload(self) -> bool:
        """Upload once; report the first failure of a series, and its end."""
        try:
            self._outbox.flush()
            self._report(_why_others_wait())
            upload(self._outbox)
        except Exception as error:  # training must not stop, whatever a tracking server does
            message = self._words(error)
            if self._failure is None:
                print_message(f"\n{message}\nThe stage continues; its records wait in .reprogpt/outbox")
            self._failure = message
            self._is_permanent = isinstance(error, SettingsError)
            return False
        if self._failure is not None:
            print_message("\nrecords are uploaded to MLflow again")
        self._failure = None
        return True

    def _words(self, error: Exception) -> str:
        if isinstance(error, TrackingError):
            return str(error)
        if isinstance(error, OSError) and error.strerror:
            return f"{error.filename or self._outbox.folder} can't be used: {error.strerror}"
        return redact(repr(error))

    def _report(self, reasons: list[str]) -> None:
        """Say once why records of earlier runs wait."""
        for reason in reasons:
            if reason not in self._reported:
                self._reported.add(reason)
                print_message(f"\nrecords of an earlier run wait: {reason}")


def _why_others_wait() -> list[str]:
    """Upload the outboxes of earlier processes; returns why some of them wait."""
    try:
        return upload_abandoned().waiting
    except OSError as error:
        return [f"{error.filename or state_dir()}: {error.strerror or error}"]


def upload_abandoned(*, retry: bool = False) -> AbandonedUploads:
    """Upload the outboxes of processes that have ended, the oldest first. One that fails does not stop the others.

    retry: whether to try again what was set aside. Records for another store than the present one stay where they are.
    Raises TrackingError if the store can't be opened.
    """
    num_uploaded = 0
    set_aside = []
    waiting = []
    for outbox in abandoned_outboxes():
        try:
            num_uploaded += upload(outbox, retry=retry)
        except (TrackingError, RecordError) as error:
            open_store()  # if that fails, no outbox can be uploaded
            waiting.append(str(error))
        except OSError as error:
            waiting.append(f"{error.filename or outbox.folder}: {error.strerror or error}")
        finally:
            refused = outbox.set_aside()
            if refused:
                set_aside.append(f"{len(refused)} records of {outbox.folder}, the first since: {refused[0][1]}")
            outbox.release()
    return AbandonedUploads(num_uploaded, set_aside, waiting)


@contextmanager
def uploading(outbox: OutboxFile, adds: str | None = None) -> Iterator[None]:
    """Upload an outbox while the block runs, then set the run's status.

    FINISHED; KILLED after Ctrl-C, SIGTERM or the end of DVC; FAILED after any other error, with its message in the
    tag `error` if it is a PipelineError.
    adds: as End has it.
    """
    uploader = Uploader(outbox)
    status: Status = "FAILED"
    reason = None
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, Terminated, OrphanedError):
        status = "KILLED"
        raise
    except PipelineError as error:  # a queued experiment has no terminal that would show it
        reason = str(error)
        raise
    finally:
        outbox.make_room()
        if outbox.losses and status == "FINISHED":
            status = "FAILED"
            reason = f"the stage ended well; not recorded: {'; '.join(outbox.losses)}"
        outbox.append(End(status=status, adds=adds, error=reason))
        uploader.close()
