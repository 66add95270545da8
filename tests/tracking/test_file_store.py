"""Runs that an older MLflow keeps in files: a training says what they do to plain `mlflow ui`."""

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from reprogpt.tracking.outbox import open_outbox
from reprogpt.tracking.store import recorded_store, store_uri
from reprogpt.tracking.uploader import uploading

FOLDERS = "mlruns/0 mlruns/11"


def said(capsys: pytest.CaptureFixture[str], adds: str | None) -> str:
    outbox = open_outbox()
    record: dict[str, Any] = {"run_key": "k", "experiment": None, "store": recorded_store(), "made": {}}
    outbox.append("results of", **record)
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
