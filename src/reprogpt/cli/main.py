"""Runs the command that the command line names. A command's module is imported only when it runs."""

import argparse
import shlex
from pathlib import Path

from reprogpt.cli.output import EXIT_BROKEN_PIPE, discard_output, flush_output
from reprogpt.cli.parser import build_parser
from reprogpt.errors import PipelineError, run_program


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


# Imports are local: MLflow and torch take seconds to load, and `--help` should not.
def _dispatch(arguments: argparse.Namespace) -> int | None:
    match arguments.command:
        case "check":
            from reprogpt.cli.check import check

            check()
            return None
        case "generate":
            from reprogpt.cli.generate import generate

            options = {key: value for key, value in vars(arguments).items() if key != "command"}
            return generate(**options)
        case "register":
            from reprogpt.cli.register import register

            return register(arguments.name, arguments.run)
        case "compare":
            from reprogpt.cli.compare import compare

            return compare(arguments.a, arguments.b)
        case "decide":
            from reprogpt.cli.decide import decide

            options = {key: value for key, value in vars(arguments).items() if key != "command"}
            return decide(**options)
        case "overlay":
            from reprogpt.cli.overlay import overlay

            return overlay([arguments.a, *arguments.b])
        case "lineage":
            from reprogpt.cli.lineage import lineage

            return lineage(arguments.what)
        case "verify":
            from reprogpt.cli.verify import verify

            return verify(arguments.stage)
        case "sync":
            from reprogpt.cli.sync import sync

            return sync(to=arguments.to, drop=arguments.drop, yes=arguments.yes)
        case unknown:  # the parser accepts no other
            raise AssertionError(unknown)


def main() -> None:
    run_program(run)
