"""A fresh clone with a tiny configuration, and real `dvc` and MLflow to try it with."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run
from ruamel.yaml import YAML

from reprogpt.tracking.store.uri import sqlite_uri
from tools.workspace import copy_files

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCS = "\n".join(page.read_text("utf-8") for page in PAGES)
BUNDLED = ROOT / "data/offline/an-error-of-the-press.txt"
# 9 steps an epoch on the bundled text; the vocabulary is GPT-2's, so the model is not smaller on disk than 13 MB.
TINY = {
    "context_length": 64,
    "stride": 64,
    "emb_dim": 32,
    "n_heads": 2,
    "n_layers": 2,
    "batch_size": 8,
    "n_epochs": 2,
    "max_new_tokens": 5,
    "peak_lr": 0.001,
}
STEPS = 18


class Workspace:
    """A git clone, and commands run in it with this Python's programs and an environment of its own."""

    def __init__(self, path: Path, cache: Path) -> None:
        self.path = path
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
        self.env |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "REPROGPT_CACHE": str(cache),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "PYTHONUNBUFFERED": "1",
            # Keep freed memory: taking it from the system again each step costs a tiny training half its time.
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
            "OMP_NUM_THREADS": "1",  # two of these run at once, and the bits depend on the number
        }

    def run(self, *command: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; output is captured, a failure is not an exception."""
        return subprocess.run(
            command, cwd=self.path, env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start a command in a session of its own, standard output piped, for signals to be sent to.

        SIGINT is as on a terminal: a shell that starts the tests in the background has it ignored.
        """
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=self.env,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def succeed(self, *command: str) -> str:
        """Run a command that must succeed; its output, both streams."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def set_params(self, **values: Any) -> None:
        """Edit params.yaml as a person would: the value changes, the comment stays."""
        path = self.path / "params.yaml"
        text = path.read_text("utf-8")
        for key, value in values.items():
            text, count = re.subn(rf"(?m)^{key}: .*?(?= #|$)", f"{key}: {value}".replace("\\", r"\\"), text)
            assert count == 1, key
        path.write_text(text, "utf-8")

    def commit(self, message: str = "tiny") -> None:
        """Commit everything."""
        self.succeed("git", "add", "--all")
        self.succeed("git", "-c", "user.name=t", "-c", "user.email=t@t.invalid", "commit", "-qm", message)

    def stages_run(self, output: str) -> list[str]:
        """Stages that a `dvc repro` output says were run."""
        return re.findall(r"Running stage '(\w+)'", output)

    def run_queue(self, *, num_tasks: int, timeout: float) -> None:
        """Run what is queued, two at a time, until all num_tasks have ended or the seconds are over."""
        # The workers keep its standard output open: a pipe would not end before they do.
        self.succeed("sh", "-c", "dvc queue start -j 2 >/dev/null 2>&1")
        deadline = time.monotonic() + timeout
        ended = 0
        while ended < num_tasks and time.monotonic() < deadline:
            time.sleep(4)  # `dvc queue status` takes a processor two seconds
            ended = len(re.findall(r"(?m) (Success|Failed)$", self.succeed("dvc", "queue", "status")))
        self.succeed("dvc", "queue", "stop")
        assert ended == num_tasks

    def files(self) -> dict[str, bytes]:
        """Every regular file under data/ with its bytes."""
        paths = [path for path in (self.path / "data").rglob("*") if path.is_file()]
        return {path.relative_to(self.path).as_posix(): path.read_bytes() for path in paths}

    def lock(self) -> dict[str, Any]:
        """dvc.lock."""
        locked: dict[str, Any] = YAML(typ="safe", pure=True).load(self.path / "dvc.lock")
        return locked["stages"]

    def out_digests(self) -> dict[str, str]:
        """Every out's digest in dvc.lock."""
        return {out["path"]: out["md5"] for stage in self.lock().values() for out in stage["outs"]}

    def client(self) -> MlflowClient:
        """The store that plain `mlflow ui` in the clone would show."""
        return MlflowClient(sqlite_uri(self.path / "mlflow.db"))

    def runs(self) -> list[Run]:
        """All MLflow runs, oldest first."""
        if not (self.path / "mlflow.db").exists():
            return []
        client = self.client()
        experiment = client.get_experiment_by_name("reprogpt")
        return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))

    def artifacts(self, run: Run) -> set[str]:
        """Paths of the run's artifacts that exist as files now."""
        folder = file_of(run.info.artifact_uri)
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    def model_folder(self, run: Run) -> Path:
        """Where the files of the run's model lie: it has one, which is complete."""
        mine = f"source_run_id = '{run.info.run_id}'"
        (model,) = self.client().search_logged_models([run.info.experiment_id], mine)
        assert model.status == LoggedModelStatus.READY
        return file_of(model.artifact_location)


def file_of(uri: str) -> Path:
    """The path of a file: URI."""
    return Path(url2pathname(uri.removeprefix("file://")))


def checkpoints(clone: Workspace) -> list[str]:
    """The checkpoints that are there."""
    return [str(path) for path in (clone.path / ".reprogpt/checkpoints").glob("*/checkpoint-?.json")]


def kill_after_a_checkpoint(clone: Workspace, *command: str) -> None:
    """Start a command and kill its whole group once a checkpoint is there and training is past its first epoch."""
    process = clone.start(*command)
    try:
        assert process.stdout is not None
        while "Iter 00001" not in process.stdout.readline():
            assert process.poll() is None
        deadline = time.monotonic() + 60
        while not checkpoints(clone) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert checkpoints(clone)


def points_drawn(shown: str, plot: str) -> list[dict[str, str]]:
    """The points of one figure in what `dvc plots show --json` or `diff` prints: rev, column and value of each."""
    (figure,) = json.loads(shown)["data"][plot]
    spec = figure["content"]
    axis = spec["layer"][0]["encoding"]["y"]["field"]
    found = []
    for point in spec["data"]["values"]:
        # Of several columns, the point says which one it is of, after the file if there are several.
        column = point.get("filename::field", point.get("field", axis)).rpartition(":")[2]
        found.append({"rev": point["rev"], "column": column, "value": point[axis]})
    return found


def documented(command: str) -> str:
    """The command line of README.md or docs/ that begins so, without its comment."""
    lines = {line.partition("  #")[0].strip() for line in DOCS.splitlines() if line.startswith(command)}
    assert len(lines) == 1, f"{len(lines)} documented lines begin with {command}: {lines}"
    return lines.pop()


def make_workspace(path: Path, cache: Path, **params: Any) -> Workspace:
    """A new git repository with this project's files as they are now, a tiny configuration, and no history."""
    copy_files(path)
    workspace = Workspace(path, cache)
    text = cache / "corpus.txt"  # a file: URL, so that no test needs a network
    cache.mkdir(parents=True, exist_ok=True)
    shutil.copy(BUNDLED, text)
    workspace.set_params(corpus_url=text.as_uri(), corpus_sha256='""', **{**TINY, **params})
    workspace.succeed("git", "init", "-q", "-b", "main")
    workspace.commit()
    return workspace
