"""What becomes of a box's records in a real SQLite store."""

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
from reprogpt.tracking import uploader
from reprogpt.tracking.mlflow_writer import upload
from reprogpt.tracking.outbox import OutboxFile, abandoned_outboxes, open_outbox
from reprogpt.tracking.store import store_name

SAMPLING = {"temperature": 1.0, "top_k": 25}


def runs(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name("reprogpt")
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


def training_box(training_id: str = "1" * 32, **values: Any) -> OutboxFile:
    box = open_outbox(training_id)
    tags = {"training_id": training_id, "run_key": "k"}
    facts = {"name": "n", "tags": tags, "params": {"seed": 1}, "datasets": [], "store": store_name(), **values}
    box.append("training", **facts)
    box.append("start", name="n")
    return box


def finished_training(client: MlflowClient) -> Run:
    box = training_box()
    box.append("end", status="FINISHED", adds=None)
    upload(box)
    box.release()
    return runs(client)[0]


def results_box(*, status: str = "FINISHED", sampling: dict[str, Any] | None = None, **end: Any) -> OutboxFile:
    """A box as evaluate leaves it; without sampling, as one that was stopped early does."""
    box = open_outbox()
    box.append("results of", run_key="k", experiment=None, store=store_name())
    if sampling:
        samples = Path("samples.txt")
        samples.write_text("text")
        origin = {"sampling": sampling, "tags": {"dvc.experiment": "warm", "commit": "c"}}
        box.append("results", values={"final_val_loss": 6.5}, step=9, **origin)
        box.append_file(samples, "samples", **origin)
        box.append("description", **origin)
    box.append("end", status=status, adds="final_val_loss", **end)
    return box


def test_delivering_twice_leaves_one_of_each(client: MlflowClient) -> None:
    box = training_box(datasets=[{"name": "t", "digest": "d", "path": "p", "context": "training"}])
    for step in range(3):
        box.append("metrics", step=step, values={"loss": 5.0 - step, "lr": 0.1})
    box.append("tags", values={"a": "b"})
    assert upload(box) == 6
    (box.folder / "delivered").unlink()  # killed between delivering and noting it down
    assert upload(box) == 6
    assert upload(box) == 0
    (run,) = runs(client)
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(0, 5.0), (1, 4.0), (2, 3.0)]
    assert run.data.params == {"seed": "1"} and run.data.tags["a"] == "b"
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["t"]


def test_more_points_than_mlflow_takes_at_once_are_sent_in_batches(client: MlflowClient) -> None:
    box = training_box()
    for step in range(700):
        box.append("metrics", step=step, values={"loss": 1.0, "lr": 0.1, "grad_norm": 2.0})
    upload(box)
    (run,) = runs(client)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "lr")] == list(range(700))


def test_a_training_that_starts_again_goes_on_in_its_run(client: MlflowClient) -> None:
    upload(training_box("1" * 32))
    shutil.rmtree(".reprogpt/outbox")
    upload(training_box("1" * 32))
    assert len(runs(client)) == 1
    upload(training_box("2" * 32))
    assert len(runs(client)) == 2


def test_a_run_starts_when_it_was_started_and_ends_when_it_ended(client: MlflowClient) -> None:
    """Not when that was delivered, which may be days later."""
    box = training_box()
    box.append("end", status="FINISHED", adds=None)
    times = [record["time"] for record in box.records()]
    upload(box)
    (run,) = runs(client)
    assert (run.info.start_time, run.info.end_time, run.info.status) == (times[0], times[-1], "FINISHED")


def test_results_go_to_the_run_of_their_training_once(client: MlflowClient) -> None:
    before = finished_training(client)
    for _ in range(2):  # a forced repeat
        upload(results_box(sampling=SAMPLING))
    (run,) = runs(client)
    assert run.data.params == {"seed": "1", "temperature": "1.0", "top_k": "25"}
    assert len(client.get_metric_history(run.info.run_id, "final_val_loss")) == 1
    assert [file.path for file in client.list_artifacts(run.info.run_id, "samples")] == ["samples/samples.txt"]
    assert (run.info.status, run.info.end_time) == ("FINISHED", before.info.end_time)


def test_other_sampling_makes_one_child_run_named_after_its_experiment(client: MlflowClient) -> None:
    finished_training(client)
    upload(results_box(sampling=SAMPLING))
    for _ in range(2):
        upload(results_box(sampling={**SAMPLING, "top_k": 9}))
    parent, child = runs(client)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.info.run_name, child.data.tags["commit"], child.info.status) == ("warm", "c", "FINISHED")
    assert child.data.params == {"temperature": "1.0", "top_k": "9"}
    assert len(client.get_metric_history(child.info.run_id, "final_val_loss")) == 1
    assert parent.data.params["top_k"] == "25"


def description(client: MlflowClient, run: Run) -> str:
    return str(client.get_run(run.info.run_id).data.tags.get("mlflow.note.content"))


def test_a_description_gains_the_result_and_stays_the_same_when_delivered_again(client: MlflowClient) -> None:
    box = training_box()
    box.append("description")
    upload(box)
    (run,) = runs(client)
    assert f"reprogpt lineage {run.info.run_id}" in description(client, run)
    upload(results_box(sampling=SAMPLING))
    text = description(client, run)
    assert "- **Result** final_val_loss 6.5\n" in text
    (box.folder / "delivered").unlink()
    upload(box)
    assert description(client, run) == text


@pytest.mark.parametrize("words", ["my words", ""])
def test_a_description_that_a_person_edited_or_cleared_stays(client: MlflowClient, words: str) -> None:
    box = training_box()
    box.append("description")
    upload(box)
    (run,) = runs(client)
    client.set_tag(run.info.run_id, "mlflow.note.content", words)  # what MLflow's page does
    (box.folder / "delivered").unlink()
    upload(box)
    upload(results_box(sampling=SAMPLING))
    assert description(client, run) == words


def test_a_description_that_was_written_before_the_first_of_ours_stays(client: MlflowClient) -> None:
    box = training_box()
    upload(box)
    (run,) = runs(client)
    client.set_tag(run.info.run_id, "mlflow.note.content", "mine")
    box.append("description")
    upload(box)
    assert description(client, run) == "mine"


def test_an_evaluation_of_its_own_has_a_description_of_its_own(client: MlflowClient) -> None:
    finished_training(client)
    upload(results_box(sampling=SAMPLING))
    upload(results_box(sampling={**SAMPLING, "top_k": 9}))
    parent, child = runs(client)
    assert f"**Evaluation** of the training `n`, run `{parent.info.run_id}`" in description(client, child)
    assert "**Evaluation**" not in description(client, parent)


@pytest.mark.parametrize(("evaluated", "status"), [(False, "KILLED"), (True, "FINISHED")])
def test_a_stopped_evaluation_ends_the_run_only_if_its_results_are_missing(
    client: MlflowClient, evaluated: bool, status: str
) -> None:
    finished_training(client)
    if evaluated:
        upload(results_box(sampling=SAMPLING))
    upload(results_box(status="KILLED"))
    assert runs(client)[0].info.status == status


def test_an_error_is_told_and_forgotten_when_the_repeat_succeeds(client: MlflowClient) -> None:
    finished_training(client)
    upload(results_box(status="FAILED", error="the checkpoint is cut"))
    (run,) = runs(client)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "the checkpoint is cut")
    upload(results_box(sampling=SAMPLING))
    (run,) = runs(client)
    assert run.info.status == "FINISHED" and "error" not in run.data.tags


def test_results_of_a_training_made_elsewhere_are_dropped_aloud(
    client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    box = results_box(sampling=SAMPLING)
    upload(box)
    assert "No MLflow run has run_key k" in capsys.readouterr().out
    box.append("end", status="FINISHED", adds="plots")
    upload(box)
    assert capsys.readouterr().out == ""  # once is enough
    assert box.pending() == [] and runs(client) == []


def test_a_record_that_is_refused_is_told_and_the_rest_delivered(
    client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    box = training_box()
    box.append("tags", values={"": "no name"})
    box.append("metrics", step=0, values={"loss": 1.0})
    upload(box)
    assert "MLflow refuses a record of kind tags" in capsys.readouterr().err
    assert runs(client)[0].data.metrics == {"loss": 1.0}


def test_records_for_another_store_stay(client: MlflowClient) -> None:
    box = training_box(store="http://elsewhere")
    with pytest.raises(TrackingError, match="kept in the MLflow store http://elsewhere"):
        upload(box)
    assert len(box.pending()) == 2 and runs(client) == []


@pytest.fixture
def locked(client: MlflowClient) -> Iterator[sqlite3.Connection]:
    """Another program that has the database locked."""
    with sqlite3.connect("mlflow.db", isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield database
    database.close()


@pytest.mark.slow  # MLflow itself waits for the lock for 20 s
def test_a_locked_database_loses_nothing(locked: sqlite3.Connection, client: MlflowClient) -> None:
    box = training_box()
    with pytest.raises(TrackingError, match=r"mlflow\.db can't be used: .*database is locked"):
        upload(box)
    locked.execute("ROLLBACK")
    upload(box)
    assert len(runs(client)) == 1


def test_a_store_of_another_version_says_the_command(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy("mlflow.db", "old.db")
    with sqlite3.connect("old.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
    database.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///old.db")
    with pytest.raises(
        TrackingError, match=r"made by another version of MLflow; .*mlflow db upgrade sqlite:///.*old\.db"
    ):
        upload(training_box())


@pytest.mark.parametrize("user_info", ["user:secret", "user:secret@with-an-at", "user:secret/with-a-slash"])
def test_no_password_is_shown_or_written(client: MlflowClient, monkeypatch: pytest.MonkeyPatch, user_info: str) -> None:
    for variable in ("USERNAME", "PASSWORD"):  # set by the store, which takes them out of the URI
        monkeypatch.setenv(f"MLFLOW_TRACKING_{variable}", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{user_info}@127.0.0.1:9")
    box = training_box()
    with pytest.raises(TrackingError) as caught:
        upload(box)
    assert "http://127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value) and "with-" not in str(caught.value)
    assert not re.search(rb"secret|with-", (box.folder / "records.jsonl").read_bytes())


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
        (401, "takes none that it was given (401). Set\nMLFLOW_TRACKING_USERNAME"),
        (403, "this user may not do that there (403)"),
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
        box = training_box()
        with uploader.uploading(box):
            started = time.monotonic()
            for step in range(200):
                box.append("metrics", step=step, values={"loss": 1.0})
            assert time.monotonic() - started < 1
        assert time.monotonic() - started < 30
        server.shutdown()
    said = capsys.readouterr().err
    assert words in said and "python -m reprogpt sync" in said
    assert "MLflow has not got the last 203 records" in said
    (waiting,) = abandoned_outboxes()
    assert len(waiting.pending()) == 203
