"""python -m reprogpt: help that comes at once, and commands that end with the code they say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("mlflow", "torch", "numpy", "pydantic", "ruamel")


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = (
        "import runpy, sys\n"
        "try: runpy.run_module('reprogpt', run_name='__main__')\n"
        f"finally: print('imported', [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["lineage", "-h"], ["check", "-h"]])
def test_help_imports_nothing_heavy(arguments):
    done = run(*arguments)
    assert done.returncode == 0
    assert done.stderr.strip() == "imported []"


@pytest.mark.parametrize("command", ["compare", "lineage", "verify"])
def test_help_says_the_exit_codes(command):
    text = " ".join(run(command, "--help").stdout.split())
    assert "exit code: 0 if" in text and " 1 if" in text and " 2 if" in text


@pytest.mark.parametrize(
    "arguments", [[], ["compare"], ["compare", "a"], ["lineage", "a", "b"], ["verify", "--stage", "x"], ["unknown"]]
)
def test_wrong_arguments_are_exit_code_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: reprogpt" in done.stderr
