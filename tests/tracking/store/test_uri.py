"""The store of a clone in any folder: found again, and nothing beside the clone."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from sqlalchemy import make_url

from reprogpt.errors import TrackingError
from reprogpt.tracking.store.client import open_store
from reprogpt.tracking.store.models import _find_or_create_model, finalize_model, register_model, upload_model_file
from reprogpt.tracking.store.uri import is_present_store, recorded_store, sqlite_path, sqlite_uri, store_name, store_uri

JAPANESE = "山田's 研究　資料 (コピー)"
FOLDERS = ["plain", "pc%20t", "100%", "a?b", "a#b;c&d", JAPANESE]


@pytest.mark.parametrize("folder", FOLDERS)
def test_sqlalchemy_reads_the_path_that_was_written(folder: str) -> None:
    path = Path("/home") / folder / "mlflow.db"
    assert make_url(sqlite_uri(path)).database == str(path)
    assert sqlite_path(sqlite_uri(path)) == path
    assert sqlite_path(sqlite_uri(path) + "?timeout=20") == path


def test_a_uri_without_special_characters_is_the_path_itself() -> None:
    assert sqlite_uri(Path(f"/home/{JAPANESE}/mlflow.db")) == f"sqlite:////home/{JAPANESE}/mlflow.db"
    assert sqlite_path("sqlite:///mlflow.db") == Path("mlflow.db")
    assert sqlite_path("postgresql://host/sqlite:///mlflow.db") is None


def test_a_store_works_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / JAPANESE / "pc%20t" / "a?b"
    root.mkdir(parents=True)
    monkeypatch.chdir(root)
    client, experiment = open_store()
    run = client.create_run(experiment).info.run_id
    Path("weights").write_text("1")
    client.log_artifact(run, "weights", "samples")
    upload_model_file(client, run, Path("weights"), "checkpoint")
    finalize_model(client, run, {"flavors": {}})

    version = register_model(run, "gpt")
    assert version is not None and version.new and register_model(run, "gpt") is not None
    downloaded = client.download_artifacts(run, "samples", str(tmp_path))
    assert Path(downloaded, "weights").read_text() == "1"
    model = _find_or_create_model(client, run)
    assert list((root / "mlruns").rglob(f"{model.model_id}/artifacts/checkpoint/weights"))
    assert {path.name for path in tmp_path.iterdir()} == {JAPANESE, "samples"}
    assert [path.name for path in (tmp_path / JAPANESE).rglob("*") if root not in path.parents] == ["pc%20t", "a?b"]
    assert recorded_store() == "sqlite:///mlflow.db" and is_present_store(recorded_store())
    assert is_present_store(store_uri())


def test_a_relative_uri_of_the_users_own_keeps_its_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a?b").mkdir()
    monkeypatch.chdir(tmp_path / "a?b")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db?timeout=20")
    url = make_url(store_uri())
    assert (url.database, dict(url.query)) == (str(tmp_path / "a?b/own.db"), {"timeout": "20"})


@pytest.mark.parametrize("password", ["pa[ss", "pa]ss", "pa#ss", "pa?ss", "pa/ss", "12#x", "#x", "[", "pa:ss", "p%40s"])
@pytest.mark.parametrize("host", ["127.0.0.1:9", "[::1]:9"])
def test_a_password_may_hold_what_divides_a_uri(
    password: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{password}@{host}")
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    assert store_name() == recorded_store() == f"http://{host}"
    with pytest.raises(TrackingError, match="refused") as caught:
        open_store()
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == unquote(password)
    assert os.environ["MLFLOW_TRACKING_URI"] == f"http://{host}"
    assert "me:" not in str(caught.value)
    database = f"postgresql://me:{password}@{host}/db?sslmode=require"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    assert make_url(store_uri()).password == unquote(password)
    assert store_name() == f"postgresql://{host}/db?sslmode=require"


@pytest.mark.parametrize("uri", ["http://host:5000/path@x", "http://[::1]:5000/a@b", "postgresql://host/db?user=a:b@c"])
def test_an_at_sign_behind_the_host_is_part_of_the_uri(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store_uri() == uri


def test_the_command_that_a_message_gives_has_its_folder_quoted(tmp_path: Path) -> None:
    root = tmp_path / JAPANESE
    (root / "src").mkdir(parents=True)
    (root / "dvc.yaml").touch()
    done = subprocess.run(
        [sys.executable, "-m", "reprogpt", "check"], cwd=root / "src", capture_output=True, check=False
    )
    advice = done.stderr.decode().partition("; `")[2].partition("` first")[0]
    moved = subprocess.run(["sh", "-c", f"{advice} && pwd"], cwd="/", capture_output=True, check=True)
    assert os.fsdecode(moved.stdout).strip() == str(root)
