"""An outbox's records in a real SQLite store."""

import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from reprogpt.errors import TrackingError
from reprogpt.tracking.deliver import uploader
from reprogpt.tracking.deliver.outbox import OutboxFile, abandoned_outboxes, open_outbox
from reprogpt.tracking.deliver.records import (
    End,
    File,
    Points,
    Results,
    ResultsOf,
    Start,
    Status,
    Tags,
    TokenFile,
)
from reprogpt.tracking.deliver.writer import upload
from reprogpt.tracking.store.uri import store_name
from tests.tracking.trainings import training_record

SAMPLING = {"temperature": 1.0, "top_k": 25}


def runs(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name("reprogpt")
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


def training_outbox(training_id: str = "1" * 32, **values: Any) -> OutboxFile:
    outbox = open_outbox(training_id)
    outbox.append(training_record(training_id, **{"name": "n", "params": {"seed": 1}} | values))
    outbox.append(Start(name="n"))
    return outbox


def finished_training(client: MlflowClient) -> Run:
    outbox = training_outbox()
    outbox.append(End(status="FINISHED", adds=None))
    upload(outbox)
    outbox.release()
    return runs(client)[0]


def results_outbox(*, status: Status = "FINISHED", sampling: dict[str, Any] | None = None, **end: Any) -> OutboxFile:
    """An outbox as evaluate leaves it; without sampling, as one of a stage that was stopped early."""
    outbox = open_outbox()
    outbox.append(ResultsOf(run_key="k", experiment=None, store=store_name()))
    if sampling:
        samples = Path("samples.txt")
        samples.write_text("text")
        origin: Any = {"sampling": sampling, "tags": {"dvc.experiment": "warm", "commit": "c"}}
        outbox.append(Results(values={"final_val_loss": 6.5}, step=9, **origin))
        outbox.append(File(kept=outbox.keep_file(samples), folder="samples", **origin))
    outbox.append(End(status=status, adds="final_val_loss", **end))
    return outbox


def test_uploading_twice_leaves_one_of_each(client: MlflowClient) -> None:
    outbox = training_outbox(datasets=[TokenFile(name="t", digest="d", path="p", context="training")])
    for step in range(3):
        outbox.append(Points(step=step, values={"loss": 5.0 - step, "lr": 0.1}))
    outbox.append(Tags(values={"a": "b"}))
    assert upload(outbox) == 6
    (outbox.folder / "delivered").unlink()  # killed between uploading and noting it
    assert upload(outbox) == 6
    assert upload(outbox) == 0
    (run,) = runs(client)
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(0, 5.0), (1, 4.0), (2, 3.0)]
    assert run.data.params == {"seed": "1"} and run.data.tags["a"] == "b"
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["t"]


def test_more_points_than_mlflow_takes_at_once_are_sent_in_batches(client: MlflowClient) -> None:
    outbox = training_outbox()
    for step in range(700):
        outbox.append(Points(step=step, values={"loss": 1.0, "lr": 0.1, "grad_norm": 2.0}))
    upload(outbox)
    (run,) = runs(client)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "lr")] == list(range(700))


def test_a_training_that_starts_again_continues_its_run(client: MlflowClient) -> None:
    upload(training_outbox("1" * 32))
    shutil.rmtree(".reprogpt/outbox")
    upload(training_outbox("1" * 32))
    assert len(runs(client)) == 1
    upload(training_outbox("2" * 32))
    assert len(runs(client)) == 2


def test_a_run_starts_when_it_was_started_and_ends_when_it_ended(client: MlflowClient) -> None:
    """Not when that was uploaded, which may be days later."""
    outbox = training_outbox()
    outbox.append(End(status="FINISHED", adds=None))
    times = [record.time for record in outbox.records()]
    upload(outbox)
    (run,) = runs(client)
    assert (run.info.start_time, run.info.end_time, run.info.status) == (times[0], times[-1], "FINISHED")


def test_results_go_to_the_run_of_their_training_once(client: MlflowClient) -> None:
    before = finished_training(client)
    for _ in range(2):  # a forced rerun
        upload(results_outbox(sampling=SAMPLING))
    (run,) = runs(client)
    assert run.data.params == {"seed": "1", "temperature": "1.0", "top_k": "25"}
    assert len(client.get_metric_history(run.info.run_id, "final_val_loss")) == 1
    assert [file.path for file in client.list_artifacts(run.info.run_id, "samples")] == ["samples/samples.txt"]
    assert (run.info.status, run.info.end_time) == ("FINISHED", before.info.end_time)


def test_other_sampling_makes_one_child_run_named_after_its_experiment(client: MlflowClient) -> None:
    finished_training(client)
    upload(results_outbox(sampling=SAMPLING))
    for _ in range(2):
        upload(results_outbox(sampling={**SAMPLING, "top_k": 9}))
    parent, child = runs(client)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.info.run_name, child.data.tags["commit"], child.info.status) == ("warm", "c", "FINISHED")
    assert child.data.params == {"temperature": "1.0", "top_k": "9"}
    assert len(client.get_metric_history(child.info.run_id, "final_val_loss")) == 1
    assert parent.data.params["top_k"] == "25"


@pytest.mark.parametrize("words", ["my words", ""])
def test_a_description_that_a_person_edited_or_cleared_stays(client: MlflowClient, words: str) -> None:
    outbox = training_outbox(tags={"training_id": "1" * 32, "run_key": "k", "mlflow.note.content": "ours"})
    upload(outbox)
    (run,) = runs(client)
    assert run.data.tags["mlflow.note.content"] == "ours"
    client.set_tag(run.info.run_id, "mlflow.note.content", words)  # what MLflow's page does
    (outbox.folder / "delivered").unlink()
    upload(outbox)
    upload(results_outbox(sampling=SAMPLING))
    assert runs(client)[0].data.tags["mlflow.note.content"] == words


@pytest.mark.parametrize(("evaluated", "status"), [(False, "KILLED"), (True, "FINISHED")])
def test_a_stopped_evaluation_ends_the_run_only_if_its_results_are_missing(
    client: MlflowClient, evaluated: bool, status: str
) -> None:
    finished_training(client)
    if evaluated:
        upload(results_outbox(sampling=SAMPLING))
    upload(results_outbox(status="KILLED"))
    assert runs(client)[0].info.status == status


def test_an_error_is_a_tag_until_a_rerun_succeeds(client: MlflowClient) -> None:
    finished_training(client)
    upload(results_outbox(status="FAILED", error="the model is truncated"))
    (run,) = runs(client)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "the model is truncated")
    upload(results_outbox(sampling=SAMPLING))
    (run,) = runs(client)
    assert run.info.status == "FINISHED" and "error" not in run.data.tags


def test_results_of_a_training_made_elsewhere_are_dropped_with_a_message(
    client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = results_outbox(sampling=SAMPLING)
    upload(outbox)
    assert "No MLflow run has run_key k" in capsys.readouterr().out
    outbox.append(End(status="FINISHED", adds="plots"))
    upload(outbox)
    assert capsys.readouterr().out == ""  # once is enough
    assert outbox.pending() == [] and runs(client) == []


def test_a_refused_record_is_reported_and_the_rest_uploaded(
    client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = training_outbox()
    outbox.append(Tags(values={"": "no name"}))
    outbox.append(Points(step=0, values={"loss": 1.0}))
    upload(outbox)
    assert "a record is not in MLflow: tags: " in capsys.readouterr().err
    assert runs(client)[0].data.metrics == {"loss": 1.0}


def test_records_for_another_store_stay_pending(client: MlflowClient) -> None:
    outbox = training_outbox(store="http://elsewhere")
    with pytest.raises(TrackingError, match="2 records are for the store http://elsewhere; set MLFLOW_TRACKING_URI"):
        upload(outbox)
    assert len(outbox.pending()) == 2 and runs(client) == []


@pytest.fixture
def locked(client: MlflowClient) -> Iterator[sqlite3.Connection]:
    """Another program that has the database locked."""
    with sqlite3.connect("mlflow.db", isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield database
    database.close()


@pytest.mark.slow  # MLflow itself waits for the lock for 20 s
def test_a_locked_database_loses_nothing(locked: sqlite3.Connection, client: MlflowClient) -> None:
    outbox = training_outbox()
    with pytest.raises(TrackingError, match=r"mlflow\.db can't be used: .*database is locked"):
        upload(outbox)
    locked.execute("ROLLBACK")
    upload(outbox)
    assert len(runs(client)) == 1


@pytest.mark.parametrize("user_info", ["user:secret", "user:secret@with-an-at", "user:secret/with-a-slash"])
def test_no_password_is_printed_or_written(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, user_info: str
) -> None:
    for variable in ("USERNAME", "PASSWORD"):  # set by the store, which takes them out of the URI
        monkeypatch.setenv(f"MLFLOW_TRACKING_{variable}", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{user_info}@127.0.0.1:9")
    outbox = training_outbox()
    with pytest.raises(TrackingError) as caught:
        upload(outbox)
    assert "http://127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value) and "with-" not in str(caught.value)
    assert not re.search(rb"secret|with-", (outbox.folder / "records.jsonl").read_bytes())


class Failing(BaseHTTPRequestHandler):
    """A server that answers every request with `status`, or not at all."""

    status: int | None = 500

    def do_GET(self) -> None:
        if self.status is None:
            time.sleep(2)
            return
        self.send_response(self.status)
        self.end_headers()

    do_POST = do_GET  # noqa: N815 - names that http.server looks for

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, "500"),
        (401, "authentication failed (401). Set\nMLFLOW_TRACKING_USERNAME"),
        (403, "permission denied (403)"),
        (None, "timed out"),
    ],
    ids=str,
)
def test_a_server_that_fails_costs_a_training_no_time_and_no_record(
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int | None,
    words: str,
) -> None:
    monkeypatch.setattr(uploader, "CLOSE_TIMEOUT", 60 if status in (401, 403) else 0.2)  # a refusal is final
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    handler = type("Handler", (Failing,), {"status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}")
        outbox = training_outbox()
        with uploader.uploading(outbox):
            started = time.monotonic()
            for step in range(200):
                outbox.append(Points(step=step, values={"loss": 1.0}))
            assert time.monotonic() - started < 1
        assert time.monotonic() - started < 30
        server.shutdown()
    printed = capsys.readouterr().err
    assert words in printed and "python -m reprogpt sync" in printed
    assert "The last 203 records of this run are not in MLflow" in printed
    (waiting,) = abandoned_outboxes()
    assert len(waiting.pending()) == 203


def test_a_stage_says_once_that_records_wait_for_another_store(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training_outbox("2" * 32, store="http://elsewhere").release()
    monkeypatch.setattr(uploader, "UPLOAD_INTERVAL", 0.05)
    with uploader.uploading(training_outbox()):
        time.sleep(0.5)
    assert capsys.readouterr().err.count("2 records are for the store http://elsewhere; set MLFLOW_TRACKING_URI") == 1
    (waiting,) = abandoned_outboxes()
    assert len(waiting.pending()) == 2 and len(runs(client)) == 1
