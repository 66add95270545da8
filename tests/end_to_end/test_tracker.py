"""Training while the tracker fails: a real MLflow server that is killed, comes back, or never answers."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from workspace import Workspace, make_workspace

STEPS = 36  # of 9 an epoch: four epochs


class Server:
    """An MLflow server on 127.0.0.1 that a test can kill and start again with what it had stored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                self.client().search_experiments()
                return
            except (OSError, MlflowException):
                assert time.monotonic() < deadline and self._process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.2)

    def kill(self) -> None:
        """End it and its workers without warning."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def run(self) -> Run:
        """The only run there is."""
        client = self.client()
        experiment = client.get_experiment_by_name("reprogpt")
        (run,) = client.search_runs([experiment.experiment_id])
        return run


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module", autouse=True)
def impatient(own_environment: None) -> Iterator[None]:
    """The tests' own client asks once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone with tokens, and a tracking server to be."""
    made = make_workspace(tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("cache"), n_epochs=4)
    made.succeed("dvc", "repro", "tokenize")
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, clone: Workspace) -> Server:
    made = Server(tmp_path_factory.mktemp("server"))
    clone.env["MLFLOW_TRACKING_URI"] = made.uri
    return made


def assert_complete(server: Server, clone: Workspace) -> None:
    """One finished run with every step once, results, and one complete model with the checkpoint that is on disk."""
    run, client = server.run(), server.client()
    assert run.info.status == "FINISHED"
    for key in ("loss", "lr", "max_grad"):
        points = client.get_metric_history(run.info.run_id, key)
        assert sorted(point.step for point in points) == list(range(STEPS)), key
    assert {"final_val_loss", "val_accuracy"} <= set(run.data.metrics)
    kinds = ("samples", "plots")
    sizes = {file.path: file.file_size for kind in kinds for file in client.list_artifacts(run.info.run_id, kind)}
    assert {"samples/samples.txt", "samples/training.txt", "plots/losses.png"} <= set(sizes)
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert (model.source_run_id, model.status) == (run.info.run_id, LoggedModelStatus.READY)
    stored = [path for path in server.folder.rglob("*.safetensors") if model.model_id in path.parts]
    assert [path.read_bytes() for path in stored] == [(clone.path / "data/model/model.safetensors").read_bytes()]


def test_a_server_that_never_answers_costs_nothing_and_sync_delivers_later(server: Server, clone: Workspace) -> None:
    output = clone.succeed("dvc", "repro")
    assert clone.stages_run(output) == ["train", "evaluate", "plot"]
    assert f"the MLflow store {server.uri} can't be used: Connection refused" in output
    assert "python -m reprogpt sync" in output
    refused = clone.run("python", "-m", "reprogpt", "sync")
    assert refused.returncode == 2
    assert "Connection refused" in refused.stderr and "Traceback" not in refused.stderr
    with running(server):
        assert "records delivered" in clone.succeed("python", "-m", "reprogpt", "sync")
        assert_complete(server, clone)
        assert not list((clone.path / ".reprogpt/outbox").iterdir())
        assert clone.succeed("python", "-m", "reprogpt", "sync").startswith("no records delivered")
        generated = clone.run(
            "python", "-m", "reprogpt", "generate", "--temperature", "0", "--run", server.run().info.run_id
        )
        assert clone.succeed("python", "-m", "reprogpt", "register", "gpt").startswith("gpt version 1: run ")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", server.uri)
            patch.setattr(sys, "path", list(sys.path))  # MLflow puts the model's own code first
            served = mlflow.pyfunc.load_model("models:/gpt/1").predict(
                pd.DataFrame({"prompt": ["Every effort moves you"]}), params={"temperature": 0}
            )
    assert generated.returncode == 0, generated.stderr
    samples = (clone.path / "data/samples.txt").read_text("utf-8")
    assert samples.startswith(f"greedy\n{generated.stdout}\ntemperature")
    assert generated.stdout == f"{served['text'][0]}\n"


def test_a_server_that_is_killed_in_mid_run_and_restarted_misses_nothing(server: Server, clone: Workspace) -> None:
    before = clone.files()
    with running(server):
        server.client().delete_run(server.run().info.run_id)
        process = clone.start("dvc", "repro", "--force")
        try:
            assert process.stdout is not None
            while "Iter 000005" not in process.stdout.readline():
                assert process.poll() is None
            server.kill()
            while "Iter 000020" not in process.stdout.readline():
                assert process.poll() is None
            server.start()
            output, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == 0, output
        assert_complete(server, clone)
    assert clone.files() == before
