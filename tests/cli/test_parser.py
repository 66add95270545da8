"""The command line: help without heavy imports, and commands that exit with the documented codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reprogpt.cli.parser import COMMANDS, Command

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("mlflow", "torch", "numpy", "pandas", "matplotlib", "pydantic", "ruamel")


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = (
        "import runpy, sys\n"
        "try: runpy.run_module('reprogpt', run_name='__main__')\n"
        f"finally: print('imported', [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("arguments", [["--help"], *([command.name, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    assert done.stderr.strip() == "imported []"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_says_what_it_does_its_exit_codes_and_examples(command: Command) -> None:
    text = run(command.name, "--help").stdout
    assert command.description.split()[-1] in text
    codes, examples = text.split("exit codes:\n  0 if ")[1].split("\nexamples:\n")
    assert " 2 if " in " ".join(codes.split())
    assert all(line.startswith(f"  reprogpt {command.name}") for line in examples.splitlines())
    assert all(len(line) <= 100 for line in text.splitlines())


def test_help_lists_every_command_in_a_line_of_its_own() -> None:
    lines = [line.split(maxsplit=1) for line in run("--help").stdout.splitlines()]
    assert [
        [command.name, command.summary] for command in COMMANDS if [command.name, command.summary] not in lines
    ] == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["compare"],
        ["compare", "a"],
        ["lineage", "a", "b"],
        ["verify", "--stage", "x"],
        ["unknown"],
    ],
)
def test_wrong_arguments_are_exit_code_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: reprogpt" in done.stderr


@pytest.mark.parametrize("program", [["reprogpt"], [sys.executable, "-m", "reprogpt"]], ids=["script", "module"])
def test_the_script_and_the_module_are_the_same_program(program: list[str]) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"GIT_COMMITTER_NAME": "me", "GIT_COMMITTER_EMAIL": "me@localhost"}  # `check` warns without
    ended = {}
    for arguments in ("check", "--help", "compare"):
        done = subprocess.run(
            [*program, arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
        )
        ended[arguments] = (done.returncode, done.stdout.split()[:1], done.stderr.split()[:1])
    usage = ["usage:"]
    assert ended == {"check": (0, ["params.yaml:"], []), "--help": (0, usage, []), "compare": (2, [], usage)}


@pytest.mark.parametrize(("folder", "advice"), [(ROOT / "src", f"`cd {ROOT}` first"), (Path("/"), "root of a clone")])
def test_another_folder_than_the_root_is_refused_in_one_message(folder: Path, advice: str) -> None:
    for command in (["check"], ["sync"], ["compare", "a", "b"]):
        done = subprocess.run(
            [sys.executable, "-m", "reprogpt", *command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"\nerror: {folder} has no dvc.yaml") and advice in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("target", "code", "words"), [("| true", 141, ""), (">/dev/full", 2, "can't be written: No sp")]
)
def test_output_that_can_not_be_written_ends_without_traceback(target: str, code: int, words: str) -> None:
    """The pipe's reader is gone before the command has begun."""
    line = f"(sleep 0.5; exec {sys.executable} -m reprogpt check) {target}; exit ${{PIPESTATUS[0]}}"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert words in done.stderr and "Exception" not in done.stderr and "Traceback" not in done.stderr
    assert words or not done.stderr
