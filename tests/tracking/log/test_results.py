"""The results of evaluate and plot, in the run of the training whose weights they are."""

import json
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy import event
from sqlalchemy.engine import Engine

from reprogpt.dvc.digest import dvc_md5
from reprogpt.errors import TrackingError
from reprogpt.files import file_digest
from reprogpt.paths import EVAL_RESULTS, HISTORY, MODEL, PLOTS, SAMPLES
from reprogpt.runs.rebuild import rebuild_run
from reprogpt.tracking.deliver import uploader
from reprogpt.tracking.deliver.outbox import open_outbox
from reprogpt.tracking.deliver.records import End, Results, ResultsOf, Start, Tags
from reprogpt.tracking.deliver.uploader import upload_abandoned
from reprogpt.tracking.deliver.writer import upload
from reprogpt.tracking.log.local_trainings import find_training, note_training
from reprogpt.tracking.log.results import log_results, record_evaluation, record_plots
from reprogpt.tracking.store.uri import store_name
from tests.tracking.trainings import runs, training_record

WEIGHTS = MODEL / "model.safetensors"
FINAL = {"final_val_loss": 4.0}


def files_of(bits: str) -> None:
    """What train writes, then evaluate and plot, in a clone whose training gave these bits."""
    for path in (WEIGHTS, HISTORY, SAMPLES, PLOTS / "losses.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(bits)
    EVAL_RESULTS.write_text(json.dumps({"final_val_loss": float(len(bits))}))


def train(name: str, bits: str, *, finished: bool = True) -> None:
    """A training with the one set of inputs that all tests here have."""
    files_of(bits)
    outbox = open_outbox(name)
    outbox.append(training_record(name))
    outbox.append(Start(name=name))
    if finished:
        made = {"weights.sha256": file_digest(WEIGHTS), f"dvc.{HISTORY}.md5": dvc_md5(HISTORY)}
        outbox.append(Tags(values=made))
        outbox.append(End(status="FINISHED", adds=None))
    try:
        upload(outbox)
    finally:
        outbox.release()


def evaluate(temperature: float = 1.0) -> None:
    with log_results("k", adds="final_val_loss") as outbox:
        record_evaluation(outbox, {"temperature": temperature}, 9)


def plot() -> None:
    with log_results("k", adds="plots") as outbox:
        record_plots(outbox)


@pytest.mark.parametrize("b_is_finished", [True, False])
def test_two_clones_with_the_same_inputs_and_other_bits(client: MlflowClient, b_is_finished: bool) -> None:
    train("a", "a")
    train("b", "bb", finished=b_is_finished)
    files_of("a")
    evaluate()
    plot()
    by_name = runs(client)
    assert by_name["a"].data.metrics == {"final_val_loss": 1.0} and by_name["b"].data.metrics == {}
    assert by_name["b"].info.status == ("FINISHED" if b_is_finished else "RUNNING")
    for name, folders in (("a", ["plots", "samples"]), ("b", [])):
        assert [item.path for item in client.list_artifacts(by_name[name].info.run_id)] == folders


def test_of_trainings_with_the_same_bits_the_newest_has_the_results(client: MlflowClient) -> None:
    train("a", "same")
    train("b", "same")
    evaluate()
    assert runs(client)["b"].data.metrics == {"final_val_loss": 4.0} and runs(client)["a"].data.metrics == {}


def test_clones_with_equal_bits_and_one_store_have_their_own_results(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for clone in ("other", "this", "later"):
        (tmp_path / clone).mkdir()
        monkeypatch.chdir(tmp_path / clone)
        train(clone, "same")
        note_training(clone, file_digest(WEIGHTS))
    monkeypatch.chdir(tmp_path / "this")
    evaluate()
    plot()
    by_name = runs(client)
    assert {name: run.data.metrics for name, run in by_name.items() if run.data.metrics} == {"this": FINAL}
    assert [item.path for item in client.list_artifacts(by_name["this"].info.run_id)] == ["plots", "samples"]


def test_sync_adds_lost_points_to_the_run_of_this_clone(client: MlflowClient) -> None:
    columns = "step,epoch,tokens_seen,lr,loss,max_grad,max_grad_clipped,grad_norm,train_loss,val_loss"
    for name in ("this", "other"):
        train(name, f"{columns}\n0,0,8,0.1,5.0,1,1,2,,\n")
        if name == "this":
            note_training(name, file_digest(WEIGHTS))
    assert f"run {runs(client)['this'].info.run_id} lacked points of 1 steps" in str(rebuild_run())
    assert {name: run.data.metrics.get("loss") for name, run in runs(client).items()} == {"this": 5.0, "other": None}


def test_experiments_with_equal_bits_have_their_own_results(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        train(name, "same")
        note_training(name, file_digest(WEIGHTS))
    monkeypatch.setenv("DVC_EXP_NAME", "one")
    evaluate()
    assert {name: run.data.metrics for name, run in runs(client).items()} == {"one": FINAL, "two": {}}


def test_a_damaged_note_of_a_training_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".reprogpt").mkdir()
    note_training("a", "w")
    with Path(".reprogpt/trainings.jsonl").open("ab") as file:
        file.write(b'\n{"weights": "w", "trai\xff')
    note_training("b", "x")
    assert (find_training("w"), find_training("x"), find_training("y")) == ("a", "b", None)


def test_results_wait_while_their_training_does_and_both_are_uploaded_later(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a store that can be read only, where another clone has the same weights."""
    monkeypatch.setattr(uploader, "CLOSE_TIMEOUT", 0.1)
    train("other", "same")

    def read_only(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA query_only = 1")

    event.listen(Engine, "connect", read_only)
    try:
        with pytest.raises(TrackingError, match="readonly"):
            train("this", "same")
        note_training("this", file_digest(WEIGHTS))
        evaluate()
        plot()
    finally:
        event.remove(Engine, "connect", read_only)
    printed = capfd.readouterr()
    assert "No MLflow run" not in printed.out and "own records are uploaded first" in printed.err
    assert [run.data.metrics for run in runs(client).values()] == [{}]
    uploads = upload_abandoned()
    assert (uploads.waiting, uploads.set_aside) == ([], [])
    run = runs(client)["this"]
    assert (run.info.status, run.data.metrics) == ("FINISHED", FINAL)
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["plots", "samples"]


def test_weights_of_no_run_are_in_no_run(client: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    train("a", "a")
    WEIGHTS.write_text("put there by hand")
    evaluate()
    assert "No MLflow run has run_key k and the weights of data/model" in capsys.readouterr().out
    assert runs(client)["a"].data.metrics == {}


def test_an_evaluation_that_fails_on_damaged_weights_ends_the_run_of_their_history(client: MlflowClient) -> None:
    train("a", "a")
    train("b", "bb")
    files_of("a")
    WEIGHTS.write_text("")
    with pytest.raises(ValueError, match="cut short"), log_results("k", adds="final_val_loss"):
        raise ValueError("cut short")
    assert {name: run.info.status for name, run in runs(client).items()} == {"a": "FAILED", "b": "FINISHED"}


def test_records_from_before_the_digests_go_to_the_newest_run(client: MlflowClient) -> None:
    train("a", "a")
    outbox = open_outbox()
    outbox.append(ResultsOf(run_key="k", experiment=None, store=store_name()))
    outbox.append(Results(values={"final_val_loss": 7.0}, step=9))
    upload(outbox)
    assert runs(client)["a"].data.metrics == {"final_val_loss": 7.0}


def test_a_text_that_mlflow_cuts_short_is_compared_as_it_is_stored(client: MlflowClient) -> None:
    train("a", "a")
    long_text = "Every effort moves you. " * 300
    for _ in range(2):
        with log_results("k", adds="final_val_loss") as outbox:
            record_evaluation(outbox, {"start_context": long_text}, 9)
    assert list(runs(client)) == ["a"]
    assert runs(client)["a"].data.params["start_context"] == long_text[:6000]


def test_the_figures_of_a_workspace_without_weights_go_to_the_run_of_their_history(client: MlflowClient) -> None:
    train("a", "a")
    train("b", "bb")
    files_of("a")
    WEIGHTS.unlink()
    Path(HISTORY).write_text("a")
    plot()
    assert client.list_artifacts(runs(client)["a"].info.run_id)[0].path == "plots"
