"""reprogpt register: the chosen model becomes a version, once, and the output shows how to serve it."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.models import Model

from reprogpt.cli.main import run
from reprogpt.dvc.digest import dvc_md5
from reprogpt.errors import PipelineError
from reprogpt.tracking.store.client import open_store
from reprogpt.tracking.store.models import finalize_model, upload_model_file

ROOT = Path(__file__).resolve().parents[2]
Register = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, own_environment: None) -> Path:
    """A folder that looks like the repository's root after a training with run key "here"."""
    folder = tmp_path_factory.mktemp("root")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    for name in ("model", "metrics"):
        (folder / "data" / name).mkdir(parents=True)
    (folder / "data/model/model.safetensors").write_bytes(b"weights")
    (folder / "data/metrics/train.json").write_text('{"run_key": ["here"]}')
    return folder


@pytest.fixture(scope="module")
def client(root: Path) -> MlflowClient:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return open_store()[0]


@pytest.fixture(scope="module")
def runs(root: Path, client: MlflowClient) -> dict[str, Run]:
    """Runs, oldest first: two that made the weights in data/model, one from other inputs; others; an evaluation."""
    experiment = client.get_experiment_by_name("reprogpt").experiment_id
    weights = dvc_md5(root / "data/model")
    made = {}
    for name, key, digest, has_model in (
        ("here", "here", weights, True),
        ("same-bits", "elsewhere", weights, True),
        ("not-uploaded", "here", weights, False),
        ("other", "other", "another.dir", True),
        ("killed", "killed", None, False),
    ):
        tags = {"run_key": key} | ({"dvc.data/model.md5": digest} if digest else {})
        made[name] = client.create_run(experiment, run_name=name, tags=tags)
        run_id = made[name].info.run_id
        upload_model_file(client, run_id, root / "data/model/model.safetensors", "checkpoint")
        if has_model:
            finalize_model(client, run_id, Model().to_dict())
    tags = {"mlflow.parentRunId": made["other"].info.run_id}
    made["evaluated"] = client.create_run(experiment, run_name="evaluated", tags=tags)
    return made


@pytest.fixture
def register(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Register:
    """Run `reprogpt register ...` in the folder: standard output and standard error."""
    monkeypatch.chdir(root)

    def act(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["reprogpt", "register", *arguments])
        assert run() == 0
        out, err = capsys.readouterr()
        return out, err

    return act


def test_the_workspaces_model_is_that_of_the_run_with_its_key_and_weights(
    register: Register, runs: dict[str, Run]
) -> None:
    """The newest of that key has none; another one made the same weights later, from other inputs."""
    out, err = register("mine")
    wanted = runs["here"].info.run_id
    assert out.splitlines() == [
        f"mine version 1: run {wanted}  here",
        "  models:/mine/1",
        "to serve it:",
        "  mlflow models serve -m models:/mine/1 --env-manager local --port 5001",
    ]
    assert err == ""


def test_a_model_gets_one_version_of_a_name(register: Register, runs: dict[str, Run], client: MlflowClient) -> None:
    assert register("gpt", "--run", "here")[0].startswith("gpt version 1: run ")
    assert register("gpt", "--run", "other")[0].startswith("gpt version 2: run ")
    again = register("gpt")[0].splitlines()
    assert again[:2] == [f"gpt version 1, as before: run {runs['here'].info.run_id}  here", "  models:/gpt/1"]
    assert len(client.search_model_versions("name = 'gpt'")) == 2


def test_an_evaluation_stands_for_its_training(register: Register, runs: dict[str, Run], client: MlflowClient) -> None:
    register("evaluated", "--run", runs["evaluated"].info.run_id[:12])
    (version,) = client.search_model_versions("name = 'evaluated'")
    assert version.run_id == runs["other"].info.run_id


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("killed", r"run [0-9a-f]{32} \(killed, RUNNING\) has no model: it is uploaded when a\ntraining ends"),
        ("unknown", r"no MLflow run has the id or name unknown[^%]*other"),
    ],
)
def test_an_unknown_run_or_one_without_a_model_is_refused(
    register: Register, runs: dict[str, Run], client: MlflowClient, what: str, words: str
) -> None:
    with pytest.raises(PipelineError, match=words):
        register("refused", "--run", what)
    assert not client.search_registered_models("name = 'refused'")


def test_weights_of_no_run_and_no_weights_are_refused(
    register: Register, runs: dict[str, Run], root: Path, tmp_path: Path
) -> None:
    weights = root / "data/model/model.safetensors"
    kept = shutil.move(weights, tmp_path / "kept")
    with pytest.raises(PipelineError, match=r"no MLflow run made the weights in data/model \(\w+\.dir\)[^%]*--run RUN"):
        register("refused")
    shutil.move(root / "data/model", tmp_path / "model")
    with pytest.raises(PipelineError, match="data/model is missing: `dvc repro` trains it"):
        register("refused")
    shutil.move(tmp_path / "model", root / "data/model")
    shutil.move(kept, weights)


@pytest.mark.parametrize("name", ["", "a/b", "a:1", "a b", "it's"])
def test_a_name_that_a_uri_can_not_hold_is_exit_code_2(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["reprogpt", "register", name])
    assert run() == 2
    assert f"{name!r} must consist of letters, digits, dots, dashes and underscores" in capsys.readouterr().err
