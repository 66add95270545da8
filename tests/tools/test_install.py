"""The environment that `make` makes: whole or made again, one process at a time, and of this folder's code."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools/install.py"
FOLDER = "山田's 研究　資料 (コピー)"
ENV = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONUTF8", "VIRTUAL_ENV")}
ENV |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def make_clone(root: Path) -> None:
    """A folder with this script, no package to install, and code that prints where it lies."""
    (root / "tools").mkdir(parents=True)
    shutil.copy(SCRIPT, root / "tools")
    (root / "src/reprogpt").mkdir(parents=True)
    (root / "src/reprogpt/__main__.py").write_text("import os\nprint(os.fsencode(__file__))")
    for pins in ("requirements.lock", "requirements-dev.lock"):
        (root / pins).touch()


def start(root: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "tools/install.py"]
    return subprocess.Popen(command, cwd=root, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def code_that_runs(root: Path) -> str:
    """Which folder's code `reprogpt` runs, called from elsewhere."""
    done = subprocess.run([root / ".venv/bin/reprogpt"], cwd="/", env=ENV, capture_output=True, check=True)
    return done.stdout.decode("ascii").strip()


def test_two_at_once_make_one_environment_that_is_made_again_after_a_move(tmp_path: Path) -> None:
    root = tmp_path / FOLDER
    make_clone(root)
    both = [start(root), start(root)]
    printed = [process.communicate(timeout=120)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert sum("installing the 0 packages of requirements.lock" in text for text in printed) == 1
    assert sum("waiting for another process" in text for text in printed) == 1
    assert code_that_runs(root) == repr(os.fsencode(root / "src/reprogpt/__main__.py"))

    copy = tmp_path / "copy"
    shutil.copytree(root, copy, symlinks=True)
    assert code_that_runs(copy) == repr(os.fsencode(copy / "src/reprogpt/__main__.py"))
    again = start(copy)
    assert ".venv was made for another folder: it is made again" in again.communicate(timeout=120)[0].decode()
    assert again.returncode == 0
    assert str(copy) in (copy / ".venv/pyvenv.cfg").read_text("utf-8")
    unchanged = start(copy)
    assert unchanged.communicate(timeout=60)[0] == b"" and unchanged.returncode == 0


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module in a clone; commands are written down in `commands`, and making .venv is quick."""
    make_clone(tmp_path)
    spec = importlib.util.spec_from_file_location("install", tmp_path / "tools/install.py")
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.commands = []

    def run(command: list[str]) -> None:
        module.commands.append(command[1:])
        if command[1:3] == ["-m", "venv"]:
            (tmp_path / ".venv/bin").mkdir(parents=True)
            (tmp_path / ".venv/lib/python3.11/site-packages").mkdir(parents=True)
            (tmp_path / ".venv/bin/python").write_text('#!/bin/sh\ntest "$1 $2 $3" = "-m pip --version"\n')
            (tmp_path / ".venv/bin/python").chmod(0o755)

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(sys, "argv", ["install.py"])
    monkeypatch.chdir(tmp_path)
    return module


MAKE = ["-m", "venv", ".venv"]


@pytest.mark.parametrize("python", ["#!/bin/sh\nexit 1\n", None], ids=["no pip", "no Python"])
def test_a_half_made_environment_is_made_again(script: Any, python: str | None) -> None:
    """As Ctrl-C leaves it, or Debian without python3-venv."""
    Path(".venv/bin").mkdir(parents=True)
    Path(".venv/installed").touch()
    if python:
        Path(".venv/bin/python").write_text(python)
        Path(".venv/bin/python").chmod(0o755)
    script.main()
    assert script.commands[0] == MAKE and "pip" in script.commands[1]
    script.commands.clear()
    script.main()
    assert script.commands == []


def test_a_failed_installation_is_tried_again(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    works = script.run

    def fail(command: list[str]) -> None:
        works(command)
        if "pip" in command:
            sys.exit("no network")

    monkeypatch.setattr(script, "run", fail)
    with pytest.raises(SystemExit, match="no network"):
        script.main()
    assert not Path(".venv/installed").exists()
    monkeypatch.setattr(script, "run", works)
    script.commands.clear()
    script.main()
    assert [command[:2] for command in script.commands] == [["-m", "pip"]]
    Path("requirements.lock").write_text("a==1\n")
    script.main()
    assert len(script.commands) == 2


def test_the_developers_tools_come_after_the_packages(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["install.py", "--dev"])
    script.main()
    assert [command[-1] for command in script.commands[1:]] == ["requirements.lock", "requirements-dev.lock"]


def test_the_python_that_is_in_the_environment_makes_no_environment(script: Any) -> None:
    """`make` finds .venv's own Python first, which is about to be removed."""
    assert Path(script.base_python()).exists()
    assert Path(sys.prefix) not in Path(script.base_python()).parents or sys.prefix == sys.base_prefix


def test_an_old_python_is_refused(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer.*make PYTHON="):
        script.main()
