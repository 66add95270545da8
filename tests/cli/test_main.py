"""Which code a command runs."""

import inspect
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from reprogpt.cli.parser import COMMANDS, Command, build_parser

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


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_is_a_function_of_its_name_that_takes_what_the_parser_gives(command: Command) -> None:
    words = {"register": ["gpt"], "compare": ["a", "b"], "decide": ["peak_lr"]}
    given = vars(build_parser().parse_args([command.name, *words.get(command.name, [])]))
    function = getattr(import_module(f"reprogpt.cli.{command.name}"), command.name)
    assert set(inspect.signature(function).parameters) == given.keys() - {"command"}
