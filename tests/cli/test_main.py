"""Which code a command runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("variable", [None, "/elsewhere"])
def test_a_command_runs_the_code_of_the_folder_it_is_called_in(tmp_path: Path, variable: str | None) -> None:
    """As after `cp -r`, with the original's environment active."""
    copy = tmp_path / "copy's"
    shutil.copytree(ROOT / "src/reprogpt", copy / "src/reprogpt", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", copy)
    (copy / "src/reprogpt/cli/check.py").write_text("def check():\n    print('the copy')\n")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"PYTHONPATH": variable} if variable else {}
    start = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); from reprogpt.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", start, "check"], cwd=copy, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the copy\n", "")
