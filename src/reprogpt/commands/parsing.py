"""The grammar of the command line, and its help."""

import argparse
from textwrap import dedent, indent

from reprogpt.commands.catalogue import COMMANDS

DESCRIPTION = """\
`dvc repro` trains the model; these commands let it write, and ask where its results come from.
Run them from the root of a clone. `reprogpt` and `python -m reprogpt` are the same."""
EPILOG = """\
examples:
  reprogpt generate "Every effort moves you" --length 20
  reprogpt compare corrected book

exit codes:
  0  done; where the command answers a question: yes
  1  the answer is no (each command's help says of what)
  2  it can't be done, and the message says why and what to do
  130 after Ctrl-C, 143 after SIGTERM, 141 where the reader of the output has gone

`reprogpt COMMAND --help` describes one command, with examples."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; what it returns names the command in `command`."""
    parser = argparse.ArgumentParser(
        prog="reprogpt", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        declared = commands.add_parser(
            command.name,
            help=command.summary,
            description=dedent(command.description),
            epilog=_section("exit codes", command.codes) + "\n" + _section("examples", command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.declare(declared)
    return parser


def _section(title: str, lines: str) -> str:
    return f"{title}:\n{indent(dedent(lines), '  ')}"
