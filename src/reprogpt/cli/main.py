"""Runs the command that the command line names. A command's module is imported only when it runs."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from reprogpt.cli.parser import build_parser
from reprogpt.errors import PipelineError
from reprogpt.process.output import EXIT_BROKEN_PIPE, discard_output, flush_output
from reprogpt.process.run import run_program
from reprogpt.process.utf8 import restart_in_utf8_mode


def run() -> int | None:
    """Run the command that sys.argv names; returns its exit code, None for success.

    EXIT_BROKEN_PIPE if the reader of standard output closed it early. Raises PipelineError, and SystemExit for wrong
    arguments (2) and help (0).
    """
    arguments = build_parser().parse_args()
    _require_root()
    try:
        code = _dispatch(arguments)
        flush_output()
    except BrokenPipeError:
        discard_output()
        return EXIT_BROKEN_PIPE
    return code


def _require_root() -> None:
    """Refuse another folder than the repository's root: paths are relative to it, and results would seem missing."""
    here = Path.cwd()
    if (here / "dvc.yaml").is_file():
        return
    root = next((folder for folder in here.parents if (folder / "dvc.yaml").is_file()), None)
    advice = f"`cd {shlex.quote(str(root))}` first" if root else "change to the root of a clone of the repository first"
    raise PipelineError(f"{here} has no dvc.yaml, so it is not the repository's root; {advice}")


def _run_code_of(root: Path) -> None:
    """Start again with the code of this repository if that of another is running, as from a copied environment.

    The stages do the same: a command must describe and repeat what they do.
    """
    sources = root / "src"
    is_root = (root / "dvc.yaml").is_file() and (sources / "reprogpt").is_dir()
    if not is_root or Path(__file__).resolve().is_relative_to(sources.resolve()):
        return
    path = os.pathsep.join(filter(None, [str(sources), os.environ.get("PYTHONPATH")]))
    if str(sources) in sys.path[:2]:  # it was started again, and Python was told to ignore the variable
        raise PipelineError(f"{sys.executable} runs the code of {Path(__file__).parents[2]}, not of {sources}")
    os.execve(  # noqa: S606
        sys.executable,
        [sys.executable, "-m", "reprogpt", *sys.argv[1:]],
        os.environ | {"PYTHONPATH": path},
    )


def _dispatch(arguments: argparse.Namespace) -> int | None:
    """Call the command: the function of its name in the file of its name, with the parser's arguments."""
    options = dict(vars(arguments))
    name = options.pop("command")
    # Imported here: MLflow and torch take seconds to load, and `--help` should not.
    command: Callable[..., int | None] = getattr(import_module(f"reprogpt.cli.{name}"), name)
    return command(**options)


def _start() -> int | None:
    """run(), in UTF-8 mode and with the code of the current folder: both may start the program again."""
    restart_in_utf8_mode()
    _run_code_of(Path.cwd())
    return run()


def main() -> None:
    run_program(_start)
