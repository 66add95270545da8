"""A real MLflow server that asks for a password: one that is not there, refuses, is killed and comes back.

Behind it is PostgreSQL where that is installed, else SQLite.
"""

import json
import re
import secrets
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow.pyfunc
import pandas as pd
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run

from tests.end_to_end import postgres
from tests.end_to_end.workspace import Workspace, documented, make_workspace
from tools.mlflow_server import TrackingServer

STEPS = 36  # of 9 an epoch: four epochs
REPROGPT = ("python", "-m", "reprogpt")


def documented_variable(name: str) -> tuple[str, str]:
    """A variable and the value that docs/ give it."""
    _, assignment = shlex.split(documented(f"export {name}="))
    return name, assignment.removeprefix(f"{name}=")


class Tracker:
    """The server, its secrets, and all that commands which use it have printed.

    Passwords are made here: in this file's text they would be in every clone.
    """

    def __init__(self, folder: Path, database: postgres.Postgres | None) -> None:
        self.password, self.wrong, self.token = (secrets.token_hex(8) + end for end in ("@/:", "-wrong", "-token"))
        self._folder, self._database = folder, database
        auth = {
            "default_permission": "READ",
            "admin_username": "admin",
            "authorization_function": "bearer:authenticate",
        }
        auth["database_uri"] = database.uri if database else f"sqlite:///{folder / 'auth.db'}"
        config = folder / "auth.ini"
        config.write_text("\n".join(["[mlflow]", *(f"{key} = {value}" for key, value in auth.items())]))
        environment = {
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(8),
            "PYTHONPATH": str(Path(__file__).parent),
            "TEST_TOKEN": self.token,
            **dict(map(documented_variable, ("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"))),
        }
        if database:
            environment["MLFLOW_BACKEND_STORE_URI"] = database.uri
        self.server = TrackingServer(folder, "--app-name", "basic-auth", environment=environment)
        self.printed = ""

    def uri(self, password: str) -> str:
        """The server's address with a user name and password in it."""
        return self.server.uri.replace("//", f"//admin:{quote(password, safe='')}@")

    def client(self) -> MlflowClient:
        return MlflowClient(self.uri(self.password))

    def runs(self) -> list[Run]:
        """All runs, newest first."""
        client = self.client()
        experiment = client.get_experiment_by_name("reprogpt")
        return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))

    def dump(self) -> bytes:
        """All that the server has stored but artifacts."""
        if self._database:
            return self._database.dump()
        return b"".join(path.read_bytes() for path in self._folder.glob("*.db*"))

    def ask(self, clone: Workspace, *command: str, exit_code: Any = 0, **credentials: str) -> str:
        """What a command prints in the clone, with these variables MLFLOW_TRACKING_… and no others; its exit code."""
        clone.env = {key: value for key, value in clone.env.items() if not key.startswith("MLFLOW_TRACKING_")}
        clone.env |= {f"MLFLOW_TRACKING_{key}": value for key, value in credentials.items()}
        done = clone.run(*command)
        output = done.stdout + done.stderr
        self.printed += output
        assert done.returncode == exit_code, f"{command}: exit {done.returncode}\n{output}"
        assert "Traceback" not in output
        return output


@pytest.fixture(scope="module", autouse=True)
def impatient(own_environment: None) -> Iterator[None]:
    """The tests' own client asks once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone with tokens."""
    made = make_workspace(tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("cache"), n_epochs=4)
    made.succeed("dvc", "repro", "tokenize")
    return made


@pytest.fixture(scope="module")
def database() -> Iterator[postgres.Postgres | None]:
    """A PostgreSQL that has just been started, None where there is none."""
    if postgres.why_not():
        yield None
        return
    made = postgres.Postgres()
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory, database: postgres.Postgres | None) -> Iterator[Tracker]:
    """A server that is yet to be started."""
    made = Tracker(tmp_path_factory.mktemp("server"), database)
    yield made
    made.server.kill()


def assert_complete(tracker: Tracker, run: Run, clone: Workspace) -> None:
    """A finished run: every step once, results, inputs, and a complete MLflow model with the weights on disk."""
    client = tracker.client()
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")  # by way of the server
    for key in ("loss", "lr", "max_grad"):
        points = client.get_metric_history(run.info.run_id, key)
        assert sorted(point.step for point in points) == list(range(STEPS)), key
    assert {"final_val_loss", "val_accuracy", "system/system_memory_usage_megabytes"} <= set(run.data.metrics)
    assert (run.data.params["n_epochs"], run.data.params["top_k"]) == ("4", "25")
    digests = {json.loads(item.dataset.source)["uri"]: item.dataset.digest for item in run.inputs.dataset_inputs}
    assert digests == {path: clone.out_digests()[path] for path in ("data/tokens/train.npy", "data/tokens/val.npy")}
    kinds = ("samples", "plots")
    sizes = {file.path: file.file_size for kind in kinds for file in client.list_artifacts(run.info.run_id, kind)}
    assert {"samples/samples.txt", "samples/training.txt", "plots/losses.png"} <= set(sizes)
    mine = f"source_run_id = '{run.info.run_id}'"
    (model,) = client.search_logged_models([run.info.experiment_id], mine)
    assert model.status == LoggedModelStatus.READY
    stored = [path for path in tracker.server.artifacts.rglob("*.safetensors") if model.model_id in path.parts]
    assert [path.read_bytes() for path in stored] == [(clone.path / "data/model/model.safetensors").read_bytes()]


def assert_no_secrets(tracker: Tracker, clone: Workspace) -> None:
    """No password or token in any file of the clone, in what commands have printed, or in what the server stored."""
    known = [tracker.password, quote(tracker.password, safe=""), tracker.wrong, tracker.token]
    pattern = re.compile("|".join(map(re.escape, known)).encode())
    places = {str(path): path.read_bytes() for path in clone.path.rglob("*") if path.is_file()}
    assert {clone.path / "dvc.lock", clone.path / ".dvc/config"} <= set(map(Path, places))
    artifacts = {str(path): path.read_bytes() for path in tracker.server.artifacts.rglob("*") if path.is_file()}
    places |= {
        **artifacts,
        "printed": tracker.printed.encode(),
        "database": tracker.dump(),
        "log": tracker.server.log.read_bytes(),
    }
    assert [name for name, content in places.items() if pattern.search(content)] == []


def test_a_server_that_is_down_or_refuses_costs_nothing_and_sync_uploads_later(
    tracker: Tracker, clone: Workspace
) -> None:
    wrong = {"URI": tracker.uri(tracker.wrong)}
    output = tracker.ask(clone, "dvc", "repro", "train", **wrong)
    assert clone.stages_run(output) == ["train"]
    assert f"the MLflow store {tracker.server.uri} can't be used: Connection refused" in output
    assert "python -m reprogpt sync" in output
    assert "Connection refused" in tracker.ask(clone, *REPROGPT, "sync", exit_code=2, **wrong)
    tracker.server.start()
    output = tracker.ask(clone, "dvc", "repro", **wrong)
    assert clone.stages_run(output) == ["evaluate", "plot"]
    assert "authentication failed (401). Set\nMLFLOW_TRACKING_USERNAME and" in output
    right = {"URI": tracker.server.uri, "USERNAME": "admin", "PASSWORD": tracker.password}
    assert f"records uploaded to {tracker.server.uri}\n" in tracker.ask(clone, *REPROGPT, "sync", **right)
    assert "View run" not in tracker.printed  # MLflow's words, once for each upload
    (run,) = tracker.runs()
    assert_complete(tracker, run, clone)
    assert not list((clone.path / ".reprogpt/outbox").iterdir())
    token = {"URI": tracker.server.uri, "TOKEN": tracker.token}
    printed = tracker.ask(clone, *REPROGPT, "generate", "--temperature", "0", "--run", run.info.run_id, **token)
    samples = (clone.path / "data/samples.txt").read_text("utf-8")
    assert f"greedy\n{printed.splitlines()[0]}\n" in samples
    assert tracker.ask(clone, *REPROGPT, "register", "gpt", **token).startswith("gpt version 1: run ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracker.server.uri)
        patch.setenv("MLFLOW_TRACKING_TOKEN", tracker.token)
        patch.setattr(sys, "path", list(sys.path))  # MLflow puts the model's own code first
        served = mlflow.pyfunc.load_model("models:/gpt/1")
        answer = served.predict(pd.DataFrame({"prompt": ["Every effort moves you"]}), params={"temperature": 0})
    assert f"greedy\n{answer['text'][0]}\n\n" in samples


def test_the_description_says_what_the_run_is_and_how_to_restore_it(tracker: Tracker, clone: Workspace) -> None:
    (run,) = tracker.runs()
    assert run.data.tags["mlflow.note.content"].startswith(f"Trained on `corpus` for {STEPS} steps.\n")
    assert "`python -m reprogpt lineage`" in run.data.tags["mlflow.note.content"]
    output = tracker.ask(clone, *REPROGPT, "lineage", run.info.run_id, URI=tracker.uri(tracker.password))
    assert f"MLflow run {run.info.run_id}" in output and "every link that can be checked holds" in output


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("mlflow.example.com", "https://mlflow.example.com", 200),
        ("mlflow.example.com:8443", "https://mlflow.example.com", 200),
        ("127.0.0.1:5000", "https://mlflow.example.com", 200),  # from a proxy that does not pass the Host header on
        ("localhost:5001", "http://localhost:5001", 200),  # a forwarded port
        ("mlflow.example.com", "https://elsewhere.example.com", 403),
        ("elsewhere.example.com", "https://mlflow.example.com", 403),
    ],
)
def test_a_browser_may_ask_through_a_proxy(tracker: Tracker, host: str, origin: str, status: int) -> None:
    """What MLflow's pages ask for a list of runs, from the addresses of docs/tracking-server.md."""
    answer = requests.post(
        f"{tracker.server.uri}/ajax-api/2.0/mlflow/runs/search",
        json={"experiment_ids": ["0"]},
        headers={"Host": host, "Origin": origin},
        auth=("admin", tracker.password),
        timeout=60,
    )
    assert answer.status_code == status, answer.text


def test_a_server_that_is_killed_in_mid_run_and_restarted_misses_nothing(tracker: Tracker, clone: Workspace) -> None:
    before, uri = clone.files(), tracker.uri(tracker.password)
    clone.env["MLFLOW_TRACKING_URI"] = uri
    process = clone.start("sh", "-c", "exec dvc repro --force 2>&1")
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        tracker.printed += _until("Iter 000005", lines)
        tracker.server.kill()
        tracker.printed += _until("Iter 000020", lines)
        tracker.server.start()
        output, _ = process.communicate(timeout=300)
        tracker.printed += output
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert clone.files() == before
    second, first = tracker.runs()
    assert_complete(tracker, second, clone)
    compared = tracker.ask(clone, *REPROGPT, "compare", first.info.run_id, second.info.run_id, URI=uri)
    assert compared.endswith("identical to the bit\n")


def _until(word: str, lines: Iterator[str]) -> str:
    """The lines up to one with that word, which must come."""
    read = ""
    for line in lines:
        read += line
        if word in line:
            return read
    pytest.fail(f"{word} never came:\n{read}")


@pytest.mark.slow
def test_a_training_continues_without_the_password(tracker: Tracker, clone: Workspace) -> None:
    before = clone.files()
    output = tracker.ask(clone, "dvc", "repro", "--force", "train", URI=tracker.server.uri)
    assert "authentication failed (401)" in output and "python -m reprogpt sync" in output
    assert clone.files() == before and len(tracker.runs()) == 2
    tracker.ask(clone, *REPROGPT, "sync", URI=tracker.server.uri, TOKEN=tracker.token)
    assert_complete(tracker, tracker.runs()[0], clone)


def test_no_password_or_token_is_anywhere(tracker: Tracker, clone: Workspace) -> None:
    assert tracker.printed and tracker.runs()[0].info.run_id.encode() in tracker.dump()
    assert_no_secrets(tracker, clone)


def test_all_this_was_so_on_postgresql(tracker: Tracker, database: postgres.Postgres | None) -> None:
    if database is None:
        pytest.skip(str(postgres.why_not()))
    assert b"COPY public.runs" in database.dump()
    assert not list(tracker.server.log.parent.glob("*.db"))
