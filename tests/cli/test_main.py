"""The program reprogpt: its help, its exit codes, and where and with which code a command runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from reprogpt.cli import main
from reprogpt.cli.main import COMMANDS, run
from reprogpt.params.loader import read_mapping
from reprogpt.runs.verify import STAGES

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("mlflow", "torch", "numpy", "pandas", "matplotlib", "pydantic", "ruamel")


def program(*arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Run the command in a process of its own, whose standard error ends with the heavy libraries that it imported."""
    code = (
        "import runpy, sys\n"
        "try: runpy.run_module('reprogpt', run_name='__main__')\n"
        f"finally: print('imported', [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)


def command_and_help(name: str) -> tuple[click.Command, str]:
    context = click.Context(main.reprogpt, info_name="reprogpt")
    command = main.reprogpt.get_command(context, name)
    assert command is not None
    return command, command.get_help(click.Context(command, context, info_name=name))


@pytest.mark.parametrize("folder", [ROOT, Path("/")])
def test_help_imports_nothing_heavy_and_is_shown_in_any_folder(folder: Path) -> None:
    done = program("--help", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "imported []\n")


def test_help_lists_every_command_in_a_line_of_its_own() -> None:
    done = program("--help")
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert [name for name, summary in COMMANDS.items() if [name, summary] not in lines] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_has_its_exit_codes_and_examples(name: str) -> None:
    _, text = command_and_help(name)
    codes, examples = (text.split(f"  {title}:\n")[1].split("\n\n")[0] for title in ("Exit codes", "Examples"))
    shown = {line.split()[0] for line in codes.splitlines()}
    assert {"0", "2"} <= shown
    assert all(f"reprogpt {name}" in line for line in examples.splitlines())
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_and_option_of_a_command_has_help(name: str) -> None:
    command, _ = command_and_help(name)
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", None)] == []


def test_a_commands_help_is_shown_in_any_folder() -> None:
    assert program("check", "--help", cwd=Path("/")).stdout.startswith("Usage: reprogpt check")


def test_verify_offers_the_stages_of_dvc_yaml() -> None:
    assert list(STAGES) == list(read_mapping(ROOT / "dvc.yaml")["stages"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Commands:"),
        (["unknown"], "No such command 'unknown'"),
        (["compare", "a"], "Missing argument 'B'"),
        (["lineage", "a", "b"], "unexpected extra argument (b)"),
        (["check", "--fast"], "No such option '--fast'"),
        (["verify", "--stage", "x"], "'x' is not one of 'fetch', 'split', 'tokenize', 'train', 'evaluate', 'plot'"),
        (["decide"], "Missing argument 'KEY...'"),
        (["decide", "peak_lr", "--where", "n_epochs"], "'n_epochs' is not NAME=VALUE"),
        (["decide", "peak_lr", "--where", "=1"], "'=1' is not NAME=VALUE"),
        (["decide", "peak_lr", "--needs", "0"], "0.0 is not a number above 0"),
        (["decide", "peak_lr", "--needs", "nan"], "nan is not a number above 0"),
    ],
)
def test_wrong_arguments_are_exit_code_2(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["reprogpt", *arguments])
    assert run() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Usage: reprogpt ") and words in err


@pytest.mark.parametrize("start", [["reprogpt"], [sys.executable, "-m", "reprogpt"]], ids=["script", "module"])
def test_the_script_and_the_module_are_the_same_program(start: list[str]) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"GIT_COMMITTER_NAME": "me", "GIT_COMMITTER_EMAIL": "me@localhost"}  # `check` warns without
    ended = {}
    for argument in ("check", "--help", "unknown"):
        done = subprocess.run([*start, argument], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        ended[argument] = (done.returncode, done.stdout.split()[:1], done.stderr.split()[:1])
    usage = ["Usage:"]
    assert ended == {"check": (0, ["params.yaml:"], []), "--help": (0, usage, []), "unknown": (2, [], usage)}


@pytest.mark.parametrize(("folder", "advice"), [(ROOT / "src", f"`cd {ROOT}` first"), (Path("/"), "a clone first")])
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
    ("argument", "target", "code", "words"),
    [
        ("check", "| true", 141, ""),
        ("--help", "| true", 141, ""),
        ("check", ">/dev/full", 2, "can't be written: No sp"),
    ],
)
def test_output_that_can_not_be_written_ends_without_traceback(
    argument: str, target: str, code: int, words: str
) -> None:
    """The pipe's reader is gone before the command has begun."""
    line = f"(sleep 0.5; exec {sys.executable} -m reprogpt {argument}) {target}; exit ${{PIPESTATUS[0]}}"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert words in done.stderr and "Exception" not in done.stderr and "Traceback" not in done.stderr
    assert words or not done.stderr


@pytest.mark.parametrize(("arguments", "code"), [("--help", 0), ("unknown", 2), ("check --fast", 2)])
def test_closed_streams_change_no_exit_code(arguments: str, code: int) -> None:
    line = f"exec {sys.executable} -m reprogpt {arguments} >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], cwd=ROOT, timeout=60).returncode == code


@pytest.mark.parametrize("variable", [None, "/elsewhere"])
def test_a_command_runs_the_code_of_the_folder_it_is_called_in(tmp_path: Path, variable: str | None) -> None:
    """As after `cp -r`, with the original's environment active."""
    copy = tmp_path / "copy's"
    shutil.copytree(ROOT / "src/reprogpt", copy / "src/reprogpt", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", copy)
    code = "import click\n@click.command()\ndef check():\n    print('the copy')\n"
    (copy / "src/reprogpt/cli/check.py").write_text(code)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"PYTHONPATH": variable} if variable else {}
    start = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); from reprogpt.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", start, "check"], cwd=copy, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the copy\n", "")
