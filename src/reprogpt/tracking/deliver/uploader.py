"""Uploads queued records to MLflow in a background thread, which the stage never waits for."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from reprogpt.errors import OrphanedError, PipelineError, Terminated, TrackingError
from reprogpt.messages import print_message
from reprogpt.paths import state_dir
from reprogpt.tracking.deliver.outbox import OutboxFile, RecordError, abandoned_outboxes
from reprogpt.tracking.deliver.writer import belongs_to_store, upload
from reprogpt.tracking.store.client import open_store
from reprogpt.tracking.store.errors import SettingsError
from reprogpt.tracking.store.file_store import file_store_warning, is_default_store
from reprogpt.urls import redact

UPLOAD_INTERVAL = 5.0  # seconds; an upload per step would cost ten times as much
CLOSE_TIMEOUT = 10.0  # seconds to keep trying at the end if the store does not answer
MAX_RETRY_INTERVAL = 60.0  # seconds


@dataclass(frozen=True)
class AbandonedUploads:
    """num_uploaded: records. other_stores: those that further records are waiting for.

    set_aside: of each outbox with records that can't be uploaded, what and why. failures: of the outboxes that could
    not be uploaded, why; they wait.
    """

    num_uploaded: int
    other_stores: list[str]
    set_aside: list[str]
    failures: list[str]


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
        num_left = len(self._outbox.pending())
        if num_left:
            print_message(
                f"\nThe last {num_left} records of this run are not in MLflow: {self._failure}\n"
                "They are kept. Upload them when the store is available:  python -m reprogpt sync\n"
            )
        num_set_aside = len(self._outbox.set_aside())
        if num_set_aside:
            print_message(
                f"\n{num_set_aside} records of this run were refused and are kept in {self._outbox.folder}.\n"
                "Once their cause is gone, upload them:  python -m reprogpt sync\n"
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
            self._report(_failures_of_others())
            upload(self._outbox)
        except Exception as error:  # training must not stop, whatever a tracking server does
            message = str(error) if isinstance(error, TrackingError) else redact(repr(error))
            if self._failure is None:
                print_message(f"\n{message}\nThe stage continues; its records wait for the store in .reprogpt/outbox")
            self._failure = message
            self._is_permanent = isinstance(error, SettingsError)
            return False
        if self._failure is not None:
            print_message("\nthe MLflow store is available again: no record is missing")
        self._failure = None
        return True

    def _report(self, failures: list[str]) -> None:
        """Say once what keeps other runs' records waiting."""
        for failure in failures:
            if failure not in self._reported:
                self._reported.add(failure)
                print_message(f"\nrecords of an earlier run wait: {failure}")


def _failures_of_others() -> list[str]:
    """Upload the outboxes of earlier processes; returns why some of them wait."""
    try:
        return upload_abandoned().failures
    except OSError as error:
        return [f"{error.filename or state_dir()}: {error.strerror or error}"]


def waiting_for_other_stores() -> dict[str, int]:
    """The stores, other than the present one, that records of ended processes wait for -> the number of records."""
    waiting: dict[str, int] = {}
    for outbox in abandoned_outboxes():
        if not belongs_to_store(outbox):
            store = str(next(outbox.records())["store"])
            waiting[store] = waiting.get(store, 0) + len(outbox.pending())
        outbox.release()
    return waiting


def drop_records_for_other_stores() -> None:
    """Delete the outboxes of ended processes whose records are for another store than the present one."""
    for outbox in abandoned_outboxes():
        is_dropped = not belongs_to_store(outbox)
        outbox.release()
        if is_dropped:
            shutil.rmtree(outbox.folder)


def upload_abandoned(*, retry: bool = False, any_store: bool = False) -> AbandonedUploads:
    """Upload the outboxes of processes that have ended, the oldest first. One that fails does not stop the others.

    retry: whether to try again what was set aside. any_store: whether to upload what was made for another store, too.
    Raises TrackingError if the store can't be opened.
    """
    num_uploaded = 0
    other_stores = set()
    set_aside = []
    failures = []
    for outbox in abandoned_outboxes():
        try:
            if any_store or belongs_to_store(outbox):
                num_uploaded += upload(outbox, retry=retry, any_store=any_store)
            else:
                other_stores.add(str(next(outbox.records())["store"]))
        except (TrackingError, RecordError) as error:
            open_store()  # if that fails, no outbox can be uploaded
            failures.append(str(error))
        finally:
            refused = outbox.set_aside()
            if refused:
                set_aside.append(f"{len(refused)} records of {outbox.folder}, the first since: {refused[0][1]}")
            outbox.release()
    return AbandonedUploads(num_uploaded, sorted(other_stores), set_aside, failures)


@contextmanager
def uploading(outbox: OutboxFile, adds: str | None = None) -> Iterator[None]:
    """Upload an outbox while the block runs, then set the run's status.

    FINISHED; KILLED after Ctrl-C, SIGTERM or the end of DVC; FAILED after any other error, with its message in the
    tag `error` if it is a PipelineError.
    adds: for the results of a run, as in results.log_results; None for a training, which also says where
    plain `mlflow ui` would show other runs.
    """
    warning = file_store_warning() if adds is None and is_default_store() else None
    if warning:
        print_message(f"\nwarning: {warning}\n")
    uploader = Uploader(outbox)
    end: dict[str, Any] = {"status": "FAILED", "adds": adds}
    try:
        yield
        end["status"] = "FINISHED"
    except (KeyboardInterrupt, Terminated, OrphanedError):
        end["status"] = "KILLED"
        raise
    except PipelineError as error:  # a queued experiment has no terminal that would show it
        end["error"] = str(error)
        raise
    finally:
        if outbox.losses and end["status"] == "FINISHED":
            end |= {"status": "FAILED", "error": f"the stage ended well; not recorded: {'; '.join(outbox.losses)}"}
        outbox.append("end", **end)
        uploader.close()
