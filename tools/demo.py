"""The whole pipeline and one experiment on a small model, in a copy of the workspace: python -m tools.demo.

The copy has its own git history, DVC cache and MLflow store, and stays after the demo so that they can be opened.
The workspace itself is only read.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from reprogpt.process.run import run_program
from reprogpt.tracking.store.uri import sqlite_uri
from tools.workspace import copy_workspace

# Some ten seconds of training on two cores. The loss falls by several nats, and further in the experiment.
SMALL: Mapping[str, Any] = {
    "context_length": 64,
    "stride": 64,
    "emb_dim": 64,
    "n_heads": 4,
    "n_layers": 2,
    "batch_size": 2,
    "n_epochs": 3,
    "eval_freq": 12,
    "sample_freq": 1,
    "max_new_tokens": 12,
    "peak_lr": 0.0005,
    # What an edited params.yaml may say and a small model can't do.
    "accumulate": 1,
    "nproc_per_node": 1,
    "torchrun_args": "",
    "init_from": "",
}
EXPERIMENT, PEAK_LR = "higher-peak-lr", 0.003


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--folder", type=Path, help="new folder for the copy; a temporary one if left out")
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="reprogpt-demo-"))
    folder = folder.resolve()
    started = time.monotonic()
    run_demo(folder, SMALL)
    seconds = time.monotonic() - started
    print(f"\nDone in {seconds:.0f} s. The workspace is as it was; the demo's copy of it is {folder}")
    print("Open both runs at http://127.0.0.1:5000 (Model training, then the experiment reprogpt):\n")
    print(f"  {shlex.join(['mlflow', 'ui', '--backend-store-uri', store_uri(folder)])}\n")
    print(f"Remove it:  {shlex.join(['rm', '-r', str(folder)])}")


def run_demo(folder: Path, params: Mapping[str, Any]) -> None:
    """Copy the workspace into the new folder, train with `params`, train again with PEAK_LR, and compare the two.

    params: keys of params.yaml to change in the copy.
    Raises SystemExit with the exit code of a command that fails.
    """
    copy_workspace(folder)
    _set_params(folder / "params.yaml", params)
    (folder / "dvc.lock").unlink(missing_ok=True)  # the workspace's result is not the copy's
    _commit(folder, "small configuration")

    _show(folder, "dvc", "repro")
    _commit(folder, "result")
    _show(folder, "dvc", "exp", "run", "--name", EXPERIMENT, "-S", f"peak_lr={PEAK_LR}")

    first = "repro-" + _run_key(folder)[:8]
    _show(folder, "python", "-m", "reprogpt", "compare", first, EXPERIMENT, allowed=(0, 1))


def store_uri(folder: Path) -> str:
    """The MLflow store of the copy in `folder`."""
    return sqlite_uri(folder / "mlflow.db")


def _run_key(folder: Path) -> str:
    """run_key of the commit's training, which its MLflow run is named after."""
    question = ["git", "show", "HEAD:data/metrics/train.json"]
    shown = subprocess.run(question, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout
    key: str = json.loads(shown)["run_key"][0]
    return key


def _set_params(path: Path, params: Mapping[str, Any]) -> None:
    yaml = YAML()
    values: dict[str, Any] = yaml.load(path)
    values |= params
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(values, file)


def _commit(folder: Path, message: str) -> None:
    identity = ("-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false")
    _run(folder, "git", "add", "--all")
    _run(folder, "git", *identity, "commit", "--quiet", "--message", message)


def _show(folder: Path, *command: str, allowed: tuple[int, ...] = (0,)) -> None:
    print(f"\n$ {shlex.join(command)}", flush=True)
    _run(folder, *command, allowed=allowed)


def _run(folder: Path, *command: str, allowed: tuple[int, ...] = (0,)) -> None:
    code = subprocess.run(command, cwd=folder, env=_environment(folder), check=False).returncode
    if code not in allowed:
        print(f"the demo stopped: {shlex.join(command)} ended with exit code {code}, in {folder}", file=sys.stderr)
        raise SystemExit(code)


def _environment(folder: Path) -> dict[str, str]:
    """The copy's own code, and its own MLflow store and DVC repository whatever the shell names."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    programs = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    return env | {"PATH": programs, "PYTHONPATH": os.pathsep.join([str(folder / "src"), str(folder)])}


if __name__ == "__main__":
    run_program(main)
