"""`make demo` on a smaller model still: both runs are shown, and the workspace is as it was."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.end_to_end.workspace import TINY, Workspace

PROGRAM = """
import sys
from pathlib import Path
from tools.demo import run_demo
run_demo(Path(sys.argv[1]), {params})
"""


def all_files(folder: Path) -> dict[str, str]:
    """Digest of every file of a workspace, git's included."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.slow
def test_the_demo_shows_two_runs_and_leaves_the_workspace_as_it_was(workspace: Workspace, tmp_path: Path) -> None:
    edited = workspace.path / "stages/plot.py"
    edited.write_text(edited.read_text("utf-8") + "# uncommitted\n", "utf-8")
    before = all_files(workspace.path)
    folder = tmp_path / "demo"
    code = [str(workspace.path), str(workspace.path / "src")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(params=repr(TINY | {"n_epochs": 1})), str(folder)],
        cwd=workspace.path,
        env=workspace.env | {"PYTHONPATH": os.pathsep.join(code), "DVC_ROOT": "/nowhere", "MLFLOW_TRACKING_URI": "no"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all_files(workspace.path) == before

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("reprogpt")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    first, second = (run.info.run_name for run in runs)
    assert f"$ python -m reprogpt compare {first} {second}\n" in done.stdout
    assert f"  {first}  FINISHED\n" in done.stdout and f"  {second}  FINISHED\n" in done.stdout
    assert "\nparameters\n  peak_lr: 0.001 -> 0.003\n" in done.stdout
    assert (folder / "stages/plot.py").read_text("utf-8").endswith("# uncommitted\n")
    assert (folder / ".dvc/cache").is_dir()
