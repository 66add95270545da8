"""Records that still wait, or that nothing can upload: `sync` completes their run, and makes no second one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from reprogpt.cli.sync import sync as sync_command
from reprogpt.dvc.digest import dvc_md5
from reprogpt.paths import HISTORY, MODEL, TRAIN_SUMMARY, state_dir
from reprogpt.runs import rebuild
from reprogpt.tags import WEIGHTS_SHA256, md5_tag
from reprogpt.tracking.deliver.outbox import OutboxFile, open_outbox
from reprogpt.tracking.deliver.records import End, Points, Results, ResultsOf, Tags
from reprogpt.tracking.deliver.writer import upload
from reprogpt.tracking.log.local_trainings import note_training
from reprogpt.tracking.store.client import open_store
from reprogpt.tracking.store.uri import store_name
from tests.tracking.trainings import only_run, training_record

KEY, WEIGHTS = "k" * 32, "a" * 64
COLUMNS = "step,epoch,tokens_seen,loss,lr,grad_norm,max_grad,max_grad_clipped,train_loss,val_loss"
sync: Any = sync_command.callback


@pytest.fixture(autouse=True)
def trained(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone whose data/ has the history of a training of one step, as dvc.lock records it."""
    HISTORY.parent.mkdir(parents=True)
    HISTORY.write_text(f"{COLUMNS}\n0,0,8,5.0,0.1,1.0,0.5,0.5,,\n")
    MODEL.mkdir()
    TRAIN_SUMMARY.write_text(json.dumps({"run_key": [KEY]}))
    state_dir().mkdir(exist_ok=True)
    note_training("a", WEIGHTS)
    monkeypatch.setattr(rebuild, "_rebuild_whole", lambda: pytest.fail("a second run"))


def training(*, damaged: bool = False) -> OutboxFile:
    """The outbox of that training, with a line that no version knows."""
    outbox = open_outbox("a")
    outbox.append(training_record("a", run_key=KEY))
    values = {"loss": 5.0, "lr": 0.1, "grad_norm": 1.0, "max_grad": 0.5, "max_grad_clipped": 0.5}
    outbox.append(Points(step=0, values=values))
    outbox.append(Tags(values={md5_tag(HISTORY): dvc_md5(HISTORY), WEIGHTS_SHA256: WEIGHTS}))
    if damaged:
        with (outbox.folder / "records.jsonl").open("a") as file:
            file.write('{"kind": "of no version"}\n')
        outbox._lock.release()
        outbox = open_outbox("a")
    outbox.append(End(status="FINISHED", adds=None))
    return outbox


def evaluate() -> None:
    outbox = open_outbox()
    outbox.append(ResultsOf(run_key=KEY, experiment=None, store=store_name()))
    outbox.append(Results(values={"final_val_loss": 4.0}, step=0))
    outbox.append(End(status="FINISHED", adds="final_val_loss"))
    upload(outbox)
    outbox.release()


def test_a_training_whose_records_wait_gets_no_second_run(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for another store, here."""
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        training().release()
    for _ in range(2):
        assert sync() == 1
    assert client.search_runs([open_store()[1]]) == []


def test_a_run_that_lacks_records_is_failed_whatever_evaluate_adds(client: MlflowClient) -> None:
    outbox = training(damaged=True)
    upload(outbox)
    outbox.release()
    evaluate()
    run = only_run(client)
    assert (run.info.status, run.data.metrics["final_val_loss"]) == ("FAILED", 4.0)
    assert run.data.tags["error"].startswith(
        "1 records of this run are not in MLflow, but in .reprogpt/outbox, a, the f"
    )


def test_a_record_that_cannot_be_uploaded_is_given_up_with_the_folder_of_its_outbox(
    client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    training(damaged=True).release()
    for _ in range(2):
        assert sync() == 1
        before = only_run(client)
        assert before.info.status == "FAILED" and "of no version" in before.data.tags["error"]
    shutil.rmtree(Path(".reprogpt/outbox/a"))
    capsys.readouterr()
    assert sync() == 0
    assert "it is FINISHED without them" in capsys.readouterr().out
    run = only_run(client)
    assert (run.info.status, run.info.end_time) == ("FINISHED", before.info.end_time)
    assert "error" not in run.data.tags and "of no version" in run.data.tags["not_recorded"]
    assert sync() == 0
    assert capsys.readouterr().out.count("\n") == 1
