"""What all commands have in common."""

import shlex
from pathlib import Path
from typing import Any

import click

from reprogpt.errors import PipelineError

# Help for an argument that runs.find.require_run resolves.
RUN = "an MLflow run, by id, the first 6 or more digits of the id, name (the newest of that name) or DVC experiment"


class Command(click.Command):
    """A command that runs in the repository's root only. Its function returns the exit code, None for 0."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises PipelineError in another folder: results would seem to be missing there."""
        here = Path.cwd()
        if not (here / "dvc.yaml").is_file():
            root = next((folder for folder in here.parents if (folder / "dvc.yaml").is_file()), None)
            advice = f"`cd {shlex.quote(str(root))}` first" if root else "change to the root of a clone first"
            raise PipelineError(f"{here} has no dvc.yaml, so it is not the repository's root; {advice}")
        return super().invoke(ctx)
