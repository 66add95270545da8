"""Runs that an older MLflow keeps in files: a training says what they do to plain `mlflow ui`."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _has_existing_mlruns_data

from reprogpt.tracking.deliver.outbox import open_outbox
from reprogpt.tracking.deliver.records import ResultsOf
from reprogpt.tracking.deliver.uploader import uploading
from reprogpt.tracking.store.file_store import file_store_warning
from reprogpt.tracking.store.uri import recorded_store, store_uri

FOLDERS = "mlruns/0 mlruns/11"


def said(capsys: pytest.CaptureFixture[str], adds: str | None) -> str:
    outbox = open_outbox()
    record: dict[str, Any] = {"run_key": "k", "experiment": None, "store": recorded_store(), "made": {}}
    outbox.append(ResultsOf(**record))
    with uploading(outbox, adds=adds):
        pass
    return capsys.readouterr().err


def test_a_training_says_how_to_move_them_away_and_the_later_stages_do_not(
    client: MlflowClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(capsys, None) == ""
    for folder in FOLDERS.split():
        Path(folder).mkdir(parents=True)
        (Path(folder) / "meta.yaml").touch()
    printed = said(capsys, None)
    assert printed.count("maintenance\nmode") == 1
    assert printed.endswith(f"mkdir -p mlruns-old && mv {FOLDERS} mlruns-old/\n\n")
    assert said(capsys, "plots") == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri())  # then `mlflow ui` has to be told of it in any case
    assert said(capsys, None) == ""


def test_runs_that_an_older_mlflow_left_are_moved_out_of_plain_mlflows_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("0", "0123456789abcdef0123456789abcdef/artifacts", "models"):
        (tmp_path / "mlruns" / name).mkdir(parents=True)
    (tmp_path / "mlruns/models/meta.yaml").touch()  # nothing of an experiment
    assert file_store_warning() is None and not _has_existing_mlruns_data()
    (tmp_path / "mlruns/0/meta.yaml").write_text("name: Default")
    assert _has_existing_mlruns_data()
    warning = file_store_warning()
    assert warning
    subprocess.run(["sh", "-c", warning.splitlines()[-1]], check=True)
    assert file_store_warning() is None and not _has_existing_mlruns_data()
    assert [path.name for path in (tmp_path / "mlruns").glob("0*")] == ["0123456789abcdef0123456789abcdef"]
