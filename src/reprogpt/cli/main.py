"""The program `reprogpt`: finds the command, runs it, and exits with its code."""

import os
import sys
from importlib import import_module
from pathlib import Path

import click

from reprogpt.errors import PipelineError
from reprogpt.numerics.env_vars import set_env_vars
from reprogpt.process.run import run_program
from reprogpt.process.streams import EXIT_BROKEN_PIPE, discard_output, flush_output
from reprogpt.process.utf8 import restart_in_utf8_mode

# The function of each name is in the file of the same name.
COMMANDS = {
    "check": "report every problem of params.yaml",
    "generate": "generate text with the trained model",
    "register": "register a trained model in MLflow's model registry",
    "compare": "show the differences between two runs",
    "decide": "tell which value of a parameter is better, from several seeds",
    "lineage": "trace where a result comes from, and check it",
    "verify": "rerun the recorded run and compare the bits",
    "sync": "upload records that wait for MLflow, and points that it has lost",
}


class LazyGroup(click.Group):
    """Imports a command's file when the command is named: MLflow and torch take seconds to import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name == "generate":  # before torch is imported; not for verify, whose stages would inherit them
            set_env_vars({"numerics": "auto"})
        command: click.Command = getattr(import_module(f"reprogpt.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup)
def reprogpt() -> None:
    """Generate text with the trained model, and compare, verify and trace its results.

    `dvc repro` trains the model. Run the commands in the root of a clone. `reprogpt` and `python -m reprogpt` are the
    same program. `reprogpt COMMAND --help` describes one command, with examples.

    \b
    Exit codes:
      0    done; if the command answers a question: yes
      1    the answer is no; the command's help names the question
      2    failed: wrong arguments, or an error whose message says what to do
      130  Ctrl-C
      141  the reader of the output closed the pipe
      143  SIGTERM or SIGHUP
    """


def run() -> int | None:
    """Run the command that sys.argv names; returns its exit code, None for success.

    2 for wrong arguments, EXIT_BROKEN_PIPE if the reader of standard output closed it early. Raises PipelineError.
    """
    try:
        code = _run_command(sys.argv[1:])
        flush_output()
    except BrokenPipeError:
        discard_output()
        return EXIT_BROKEN_PIPE
    return code


def _run_command(arguments: list[str]) -> int | None:
    """As click's main(), which would exit with 1 on a closed pipe and on Ctrl-C."""
    try:
        with reprogpt.make_context("reprogpt", arguments) as context:
            code: int | None = reprogpt.invoke(context)
            return code
    except click.exceptions.Exit as end:  # after --help
        return end.exit_code
    except click.UsageError as error:
        error.show()
        return error.exit_code


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


def _start() -> int | None:
    """run(), in UTF-8 mode and with the code of the current folder: both may start the program again."""
    restart_in_utf8_mode()
    _run_code_of(Path.cwd())
    return run()


def main() -> None:
    run_program(_start)
