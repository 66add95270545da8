"""reprogpt decide on a real store: output, exit codes, figure, foreign runs, and many runs."""

import math
import shutil
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from reprogpt.cli.main import run as run_command
from reprogpt.errors import PipelineError
from reprogpt.params.loader import read_mapping
from reprogpt.tracking.store.client import open_store
from tests.decide.test_decision import VALUES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(fresh_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's root with an empty store."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE experiments SET artifact_location = ?", ((tmp_path / "mlruns").as_uri(),))
    database.close()
    return tmp_path


def record_run(seed: int, value: float, status: str = "FINISHED", **changes: Any) -> str:
    """A finished run of params.yaml's values but for the changes."""
    client, experiment = open_store()
    params = read_mapping(Path("params.yaml")) | changes | {"seed": seed}
    tags = {"run_key": f"{seed}{changes}", "train_code": "c", "weights.sha256": f"{seed}{changes}"}
    run_id: str = client.create_run(experiment, tags=tags).info.run_id
    names = [Param(key, str(params[key])) for key in ("peak_lr", "warmup_ratio", "n_epochs", "seed", "emb_dim")]
    client.log_batch(run_id, [Metric("final_val_loss", value, 0, 134)], names)
    client.set_terminated(run_id, status)
    return run_id


def record_foreign_run(seed: object, value: float, **params: Any) -> None:
    """As a notebook does that logs the same names."""
    client, experiment = open_store()
    run_id: str = client.create_run(experiment, run_name="notebook").info.run_id
    names = [Param(key, str(param)) for key, param in ({"peak_lr": 0.0005, "seed": seed} | params).items()]
    client.log_batch(run_id, [Metric("final_val_loss", value, 0, 134)], names)
    client.set_terminated(run_id)


def record_pairs(difference: float, noise: float, **changes: Any) -> list[str]:
    ids = [record_run(seed, value) for seed, value in VALUES.items()]
    return ids + [
        record_run(seed, value + difference + noise * (-1) ** seed, **changes) for seed, value in VALUES.items()
    ]


def decide(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Any, str]:
    monkeypatch.setattr("sys.argv", ["reprogpt", "decide", *arguments])
    return run_command(), capsys.readouterr().out


def test_decided_undecided_and_errors_have_the_codes_0_1_and_2(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PipelineError, match="there are no runs yet"):  # which ends a program with 2
        decide(capsys, monkeypatch, "peak_lr")
    record_pairs(-0.2, 0.01, peak_lr=0.001)
    code, printed = decide(capsys, monkeypatch, "peak_lr")
    assert code == 0
    assert "peak_lr=0.001 is better than 0.0005 for the typical seed, in 6 of 6 pairs, by 0.2" in printed
    code, printed = decide(capsys, monkeypatch, "peak_lr", "--where", "n_epochs=15", "--needs", "0.01")
    assert code == 0 and "to see a difference of 0.01, about" in printed
    record_run(1, 9.0, warmup_ratio=0.3)
    code, printed = decide(capsys, monkeypatch, "warmup_ratio")
    assert code == 1
    assert "dvc exp run --queue -S 'warmup_ratio=0.3' -S 'seed=range(2,7)'" in printed


def test_runs_of_others_in_the_experiment_change_no_verdict(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record_pairs(0.2, 0.01, peak_lr=0.001)
    for seed in (*VALUES, "None", "42.5"):
        record_foreign_run(seed, 6.0)
        record_foreign_run(seed, 5.5, peak_lr=0.001)
    code, printed = decide(capsys, monkeypatch, "peak_lr")
    assert code == 0
    assert "peak_lr=0.001 is worse than 0.0005 for the typical seed, in 6 of 6 pairs, by 0.2" in printed
    assert "12 runs with otherwise equal inputs" in printed
    assert "left out: 16 not trained by this pipeline" in printed


def test_an_infinite_loss_comes_back_from_the_store_as_a_run_without_one(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, value in VALUES.items():
        record_run(seed, value)
        record_run(seed, math.inf, peak_lr=0.1)
    code, printed = decide(capsys, monkeypatch, "peak_lr")
    assert code == 0
    assert "peak_lr=0.1 is worse than 0.0005 for the typical seed, in 6 of 6 pairs, on this text" in printed
    assert "e+308" not in printed


def test_the_figure_has_the_same_bytes_from_the_same_runs(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record_pairs(-0.2, 0.01, peak_lr=0.001)
    _, printed = decide(capsys, monkeypatch, "peak_lr")
    files = [Path(name) for name in printed.splitlines()[-1].removeprefix("figure: ").split()]
    assert [path.name for path in files] == ["peak_lr-final_val_loss.png", "peak_lr-final_val_loss.pdf"]
    drawn = [path.read_bytes() for path in files]
    assert drawn[0].startswith(b"\x89PNG") and drawn[1].startswith(b"%PDF")
    decide(capsys, monkeypatch, "peak_lr")
    assert [path.read_bytes() for path in files] == drawn
    for seed in VALUES:
        record_run(seed, 7.0 + seed / 100, peak_lr=0.002)
        record_run(seed, float("nan"), peak_lr=0.02)
    decide(capsys, monkeypatch, "peak_lr")
    assert files[0].read_bytes() != drawn[0]


def test_a_store_that_can_t_be_reached_is_an_error(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(PipelineError, match="can't be used"):
        decide(capsys, monkeypatch, "peak_lr")


def test_two_thousand_runs_are_answered_within_seconds(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without reading a history: a query a page of runs."""
    ids = [record_run(1, 6.0), record_run(1, 5.8, peak_lr=0.001)]
    with sqlite3.connect(root / "mlflow.db") as database:
        for number in range(2, 1001):
            for source in ids:
                copy_run(database, source, seed=number, value=6 + (number % 7) / 100 - 0.2 * (source == ids[1]))
    database.close()
    histories: list[str] = []
    monkeypatch.setattr(MlflowClient, "get_metric_history", lambda *arguments: histories.append(str(arguments)))
    start = time.monotonic()
    code, printed = decide(capsys, monkeypatch, "peak_lr")
    assert time.monotonic() - start < 120  # seconds by itself; tests are traced for their coverage, beside others
    assert "2000 runs with otherwise equal inputs" in printed
    assert code == 0 and not histories


def copy_run(database: sqlite3.Connection, source: str, *, seed: int, value: float) -> None:
    """Copy a run's rows, with another seed and metric: MLflow takes a minute for 2,000 runs."""
    target = uuid.uuid4().hex
    for table in ("runs", "params", "tags", "latest_metrics"):
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        for row in database.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (source,)).fetchall():
            values = dict(zip(columns, row, strict=True)) | {"run_uuid": target}
            if table == "params" and values["key"] == "seed":
                values["value"] = str(seed)
            if table == "latest_metrics":
                values["value"] = value
            marks = ",".join("?" * len(columns))
            database.execute(f"INSERT INTO {table} VALUES ({marks})", [values[name] for name in columns])
