"""Records that the store refuses or loses, and runs that vanish: nothing is lost, nothing incomplete is FINISHED."""

import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.utils.request_utils import augmented_raise_for_status
from mlflow.utils.rest_utils import verify_rest_response

from reprogpt.cli.sync import sync as sync_command
from reprogpt.errors import TrackingError
from reprogpt.tracking.deliver import uploader
from reprogpt.tracking.deliver.outbox import OutboxFile, open_outbox
from reprogpt.tracking.deliver.records import End, File, Points, Start, to_line
from reprogpt.tracking.deliver.writer import upload
from tests.tracking.trainings import answer, runs, training_record

NUM_STEPS = 6
sync: Any = sync_command.callback


def steps(client: MlflowClient, name: str) -> list[int]:
    return [point.step for point in client.get_metric_history(runs(client)[name].info.run_id, "loss")]


def start(name: str) -> OutboxFile:
    outbox = open_outbox(name)
    outbox.append(training_record(name, params={"seed": 1}))
    Path("params.yaml").write_text("seed: 1")
    outbox.append(File(kept=outbox.keep_file(Path("params.yaml")), folder=""))
    outbox.append(Start(name=name))
    return outbox


def log_steps(outbox: OutboxFile, first: int = 0, last: int = NUM_STEPS) -> None:
    for step in range(first, last):
        outbox.append(Points(step=step, values={"loss": 1.0 + step, "lr": 0.1}))


def training(name: str) -> OutboxFile:
    """The outbox of a whole training."""
    outbox = start(name)
    log_steps(outbox)
    outbox.append(End(status="FINISHED", adds=None))
    return outbox


def assert_whole(client: MlflowClient, name: str) -> None:
    run = runs(client)[name]
    assert (run.info.status, run.data.params, steps(client, name)) == (
        "FINISHED",
        {"seed": "1"},
        list(range(NUM_STEPS)),
    )
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["params.yaml"]
    assert "error" not in run.data.tags


def refuse_points(monkeypatch: pytest.MonkeyPatch, status: int, *, step: int) -> None:
    """A proxy that answers so to each batch with this step, whatever else is in it."""
    log_batch = MlflowClient.log_batch

    def log(client: MlflowClient, run_id: str, metrics: Any = (), **values: Any) -> Any:
        if any(point.step == step for point in metrics):
            verify_rest_response(answer(status), "/api/2.0/mlflow/runs/log-batch")
        return log_batch(client, run_id, metrics=metrics, **values)

    monkeypatch.setattr(MlflowClient, "log_batch", log)


def refuse_files(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(MlflowClient, "log_artifact", lambda *_: augmented_raise_for_status(answer(status)))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_point_that_is_refused_is_set_aside_and_all_else_is_uploaded(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    training("a").release()
    training("b").release()
    with monkeypatch.context() as patch:
        refuse_points(patch, status, step=3)
        assert sync() == 1
    printed = capsys.readouterr()
    assert f"a record is not in MLflow: metrics of step 3: HTTP {status}" in printed.err
    assert "It is kept: line 7 of" in printed.err and "2 records of" in printed.out
    assert set(runs(client)) == {"a", "b"}
    for name in ("a", "b"):
        run = runs(client)[name]
        assert steps(client, name) == [0, 1, 2, 4, 5]
        assert run.info.status == "FAILED" and "1 records of this run are not in MLflow" in run.data.tags["error"]
    assert sync() == 0
    assert_whole(client, "a")
    assert_whole(client, "b")
    assert not list(Path(".reprogpt/outbox").iterdir())


def test_a_file_that_is_too_large_for_a_proxy_does_not_block_later_runs(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        refuse_files(patch, 413)
        for name in ("a", "b"):
            with uploader.uploading(start(name)) as _:
                pass
    printed = capsys.readouterr().err
    assert printed.count("records of this run were refused and are kept in") == 2
    assert printed.count("a record is not in MLflow: file params.yaml (7 bytes): HTTP 413") == 2
    assert all("file params.yaml (7 bytes): HTTP 413" in run.data.tags["error"] for run in runs(client).values())
    assert {run.info.status for run in runs(client).values()} == {"FAILED"} and len(runs(client)) == 2
    assert sync() == 0
    assert {run.info.status for run in runs(client).values()} == {"FINISHED"}


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_server_in_trouble_is_no_refusal(client: MlflowClient, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    outbox = training("a")
    with monkeypatch.context() as patch:
        refuse_points(patch, status, step=3)
        with pytest.raises(TrackingError):
            upload(outbox)
    assert outbox.set_aside() == []
    upload(outbox)
    assert_whole(client, "a")


def test_a_run_that_the_server_fails_on_does_not_hold_up_the_others(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training("a").release()
    outbox = open_outbox("b")
    outbox.append(training_record("b"))
    with monkeypatch.context() as patch:
        refuse_points(patch, 500, step=3)
        with uploader.uploading(outbox):
            pass
    assert runs(client)["b"].info.status == "FINISHED"
    assert capsys.readouterr().err.count("records of an earlier run wait") == 1
    assert sync() == 0
    assert_whole(client, "a")


@pytest.mark.parametrize("line", ['{"kind": "of tomorrow"}', '{"kind": "metrics"}', "x"])
def test_a_line_that_is_no_record_is_set_aside_and_named(
    client: MlflowClient, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    outbox = start("a")
    with (outbox.folder / "records.jsonl").open("a") as file:
        file.write(line + "\n")
    outbox._lock.release()
    training("a").release()
    training("b").release()
    assert sync() == 1
    printed = capsys.readouterr()
    assert "refused: 2 records of" in printed.out and "line 4 of" in printed.err
    assert "a record is not in MLflow: damaged line: " in printed.err
    assert steps(client, "a") == list(range(NUM_STEPS)) and runs(client)["a"].info.status == "FAILED"
    assert_whole(client, "b")


@pytest.mark.parametrize("line", ["x", '{"kind": "training"}', to_line(Start(name="a", time=1)).decode().strip()])
def test_an_outbox_that_does_not_say_which_run_it_is_for_is_passed_and_named(
    client: MlflowClient, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    outbox = open_outbox("a")
    (outbox.folder / "records.jsonl").write_text(line + "\n")
    outbox._lock.release()
    training("b").release()
    assert sync() == 1
    assert "not uploaded: " in (printed := capsys.readouterr().out) and str(outbox.folder) in printed
    assert_whole(client, "b")


def test_a_mark_beyond_the_end_uploads_all(client: MlflowClient) -> None:
    outbox = training("a")
    (outbox.folder / "delivered").write_text("1000000")
    outbox.release()
    assert sync() == 0
    assert_whole(client, "a")


def lose_points(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """A gateway that answers 200 and stores no point, so many times."""
    log_batch = MlflowClient.log_batch
    left = [times]

    def log(client: MlflowClient, run_id: str, metrics: Any = (), **values: Any) -> Any:
        if metrics and left[0]:
            left[0] -= 1
            return None
        return log_batch(client, run_id, metrics=metrics, **values)

    monkeypatch.setattr(MlflowClient, "log_batch", log)


def test_points_that_a_store_took_and_lost_are_uploaded_again(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_points(monkeypatch, 1)
    upload(training("a"))
    assert_whole(client, "a")


def test_a_store_that_keeps_no_points_is_named_and_its_run_is_not_finished(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training("a").release()
    with monkeypatch.context() as patch:
        lose_points(patch, 1000)
        assert sync() == 1
    assert "does not keep what it accepts: run" in (printed := capsys.readouterr().out)
    assert "lacks points of 6 of 6 steps, the first at step 0: loss, lr" in printed
    assert runs(client)["a"].info.status == "RUNNING"
    assert sync() == 0
    assert_whole(client, "a")


class Gateway(BaseHTTPRequestHandler):
    """Answers 200 {} to everything."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET  # noqa: N815 - a name that http.server looks for

    def log_message(self, *_: object) -> None:
        pass


def test_a_gateway_that_answers_without_content_takes_no_record(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}")
        outbox = training("a")
        with pytest.raises(TrackingError, match="does not answer as an MLflow server does"):
            upload(outbox)
        server.shutdown()
    assert len(outbox.pending()) == 4 + NUM_STEPS


def delete_run(client: MlflowClient) -> None:
    client.delete_run(runs(client)["a"].info.run_id)


def remove_store(client: MlflowClient) -> None:
    Path("mlflow.db").unlink()


def put_back_an_empty_store(client: MlflowClient) -> None:
    shutil.move("empty.db", "mlflow.db")


@pytest.mark.parametrize("lose", [delete_run, remove_store, put_back_an_empty_store])
def test_a_run_that_vanishes_in_the_middle_is_made_again_from_its_first_record(
    client: MlflowClient, lose: Callable[[MlflowClient], None]
) -> None:
    shutil.copy("mlflow.db", "empty.db")
    outbox = start("a")
    log_steps(outbox, 0, 3)
    upload(outbox)
    lose(client)
    log_steps(outbox, 3)
    upload(outbox)
    outbox.append(End(status="FINISHED", adds=None))
    upload(outbox)
    assert_whole(client, "a")


def test_a_killed_run_that_was_deleted_is_whole_when_its_training_resumes(client: MlflowClient) -> None:
    Path("checkpoints").mkdir()
    outbox = open_outbox("a")
    outbox.append(training_record("a", params={"seed": 1}, kept_for=str(Path("checkpoints").resolve())))
    Path("params.yaml").write_text("seed: 1")
    outbox.append(File(kept=outbox.keep_file(Path("params.yaml")), folder=""))
    log_steps(outbox, 0, 3)
    outbox.append(End(status="KILLED", adds=None))
    upload(outbox)
    outbox.release()
    delete_run(client)
    assert sync() == 0 and runs(client) == {}  # a run that a person deleted comes back only if its training resumes
    outbox = open_outbox("a")
    outbox.append(Start(name="a"))
    log_steps(outbox, 3)
    outbox.append(End(status="FINISHED", adds=None))
    upload(outbox)
    assert_whole(client, "a")


def test_a_run_that_is_deleted_between_two_batches_is_made_again(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_artifact = MlflowClient.log_artifact
    deleted: list[str] = []

    def delete_first(client: MlflowClient, run_id: str, *arguments: Any) -> None:
        log_artifact(client, run_id, *arguments)
        if not deleted:
            deleted.append(run_id)
            client.delete_run(run_id)

    monkeypatch.setattr(MlflowClient, "log_artifact", delete_first)
    upload(training("a"))
    assert_whole(client, "a")
