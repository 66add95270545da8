"""The command line: python -m reprogpt COMMAND. A command's module is imported only when it runs."""

import argparse
from pathlib import Path

from reprogpt.commands.output import READER_GONE, drop_output, finish_output
from reprogpt.commands.parsing import build_parser
from reprogpt.errors import PipelineError, run_program


def run() -> int | None:
    """Run the command that the arguments name; its exit code, None for success.

    READER_GONE where the reader of standard output went before all was written. Raises PipelineError for what a
    person can put right, SystemExit for wrong arguments (2) and help (0).
    """
    arguments = build_parser().parse_args()
    _require_root()
    try:
        code = _start(arguments)
        finish_output()
    except BrokenPipeError:
        drop_output()
        return READER_GONE
    return code


def _require_root() -> None:
    """Every path here is relative to the repository's root: anywhere else, results would seem to be missing."""
    here = Path.cwd()
    if (here / "dvc.yaml").is_file():
        return
    root = next((folder for folder in here.parents if (folder / "dvc.yaml").is_file()), None)
    advice = f"`cd {root}` first" if root else "change to the root of a clone of the repository first"
    raise PipelineError(f"{here} has no dvc.yaml, so it is not the repository's root; {advice}")


# The imports wait inside: MLflow and torch take seconds to load, and `--help` should not.
def _start(arguments: argparse.Namespace) -> int | None:
    match arguments.command:
        case "check":
            from reprogpt.commands.check import check

            check()
            return None
        case "generate":
            from reprogpt.commands.generate import generate

            options = {key: value for key, value in vars(arguments).items() if key != "command"}
            return generate(**options)
        case "register":
            from reprogpt.commands.register import register

            return register(arguments.name, arguments.run)
        case "compare":
            from reprogpt.commands.compare import compare

            return compare(arguments.a, arguments.b)
        case "overlay":
            from reprogpt.commands.overlay import overlay

            return overlay([arguments.a, *arguments.b])
        case "lineage":
            from reprogpt.commands.lineage import lineage

            return lineage(arguments.what)
        case "verify":
            from reprogpt.commands.verify import verify

            return verify(arguments.stage)
        case "sync":
            from reprogpt.commands.sync import sync

            return sync()
        case unknown:  # the parser lets no other pass
            raise AssertionError(unknown)


def main() -> None:
    run_program(run)


if __name__ == "__main__":
    main()
