"""What all commands have in common: exit codes and examples in their help, and the folder that they run in."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from reprogpt.errors import PipelineError

# Help for an argument that find.require_run resolves.
RUN = "MLflow run, by id, the first 6 or more digits of the id, name (the newest of that name) or DVC experiment"


class HelpSections(click.Command):
    """A command whose help ends with its exit codes and with examples."""

    def __init__(self, *args: Any, exit_codes: Mapping[int, str], examples: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.exit_codes = exit_codes
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write both sections."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in self.exit_codes.items()])
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"  {line}\n")


class Command(HelpSections):
    """A command that runs in the repository's root only. Its function returns the exit code, None for 0."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises PipelineError in another folder."""
        _require_root()
        return super().invoke(ctx)


def _require_root() -> None:
    """Refuse any folder but the repository's root: paths are relative to it, and results would seem missing."""
    here = Path.cwd()
    if (here / "dvc.yaml").is_file():
        return
    root = next((folder for folder in here.parents if (folder / "dvc.yaml").is_file()), None)
    advice = f"`cd {shlex.quote(str(root))}` first" if root else "change to the root of a clone of the repository first"
    raise PipelineError(f"{here} has no dvc.yaml, so it is not the repository's root; {advice}")
