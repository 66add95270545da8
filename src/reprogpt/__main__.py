"""The command line: python -m reprogpt COMMAND. A command's module is imported only when it runs."""

import argparse
import sys

from reprogpt.errors import run_program

RUN = "MLflow run: its id, the first 6 or more digits of it, or its name (the newest of that name)"
COMPARE = """\
Print what differs between two runs: inputs, code and environment, the first step whose recorded values are
not the same bits and how the losses part from there on, results, weights."""
COMPARE_CODES = """\
exit code: 0 if parameters, text, tokens, every recorded step, results and weights are identical to the bit
(code and environment may differ), 1 if not, 2 if a run can't be found"""
LINEAGE = """\
Print the chain raw text -> train and validation text -> tokens -> weights -> results -> plots as dvc.lock
records it, whether each link holds, the MLflow runs it belongs to, and the commands that bring it back."""
LINEAGE_CODES = """\
exit code: 0 if every link that can be checked holds, 1 if one does not, 2 if WHAT can't be found"""
GENERATE = """\
Continue a text with the trained model, and print it as it comes. With temperature 0, the default, the likeliest
token is taken every time, as in the samples that training records."""
GENERATE_CODES = """\
examples:
  python -m reprogpt generate "Every effort moves you"
  python -m reprogpt generate "I had always" --temperature 0.8 --top-k 25 --seed 7 --length 100
  echo -n "He said" | python -m reprogpt generate - --run corrected
exit code: 0; 2 if a value is out of its bounds, or there is no such run or checkpoint; 130 after Ctrl-C"""
EXAMPLES = """\
examples:
  python -m reprogpt check                          before a run: every problem of params.yaml at once
  python -m reprogpt generate "Every effort moves you"
  python -m reprogpt compare corrected book         two runs, by name or by the first digits of their ids
  python -m reprogpt lineage                        where the present result comes from
`python -m reprogpt COMMAND --help` tells more of each. Exit code 2 means a mistake that the message names."""
STAGES = ("fetch", "split", "tokenize", "train", "evaluate", "plot")
VERIFY = """\
Run again what dvc.lock records, in a temporary clone that is removed afterwards, and compare every out with the
digest recorded. Workspace, DVC cache and MLflow store stay as they are. Where an out is another one, the stage
at which that begins is named, and what explains it: how text, environment and versions differ from the recorded
ones. The table goes to standard output, all that the stages print to standard error."""
VERIFY_CODES = """\
exit code: 0 if every out is the same to the bit, 1 if one is not, 2 if it could not be tried: code, parameters
or data here are not the recorded ones, no room in the temporary folder (TMPDIR), a stage that fails"""

SYNC = """\
Deliver to MLflow the records that wait in .reprogpt/outbox since the store could not be used when they were
made. The next stage that runs does the same; this is for when none is to run."""
SYNC_CODES = """\
exit code: 0 if nothing waits any longer, 1 if records wait for another store, 2 if the store can't be used"""


def run() -> int | None:
    """Run the command that the arguments name; its exit code, None for success."""
    parser = _parser("reprogpt", "Run from the root of a clone of the repository.", EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("check", help="report every problem of params.yaml").set_defaults(run_command=_check)
    _add_generate(commands)
    compare = commands.add_parser(
        "compare", help="what differs between two runs", description=COMPARE, epilog=COMPARE_CODES
    )
    compare.add_argument("a", metavar="A", help=RUN)
    compare.add_argument("b", metavar="B", help="the other one, named in the same ways")
    compare.set_defaults(run_command=_compare)
    lineage = commands.add_parser(
        "lineage", help="where a result comes from, and whether that holds", description=LINEAGE, epilog=LINEAGE_CODES
    )
    words = f"{RUN}; or a DVC experiment; or a git commit, branch or tag; the workspace if left out"
    lineage.add_argument("what", metavar="WHAT", nargs="?", help=words)
    lineage.set_defaults(run_command=_lineage)
    verify = commands.add_parser(
        "verify", help="whether the recorded run gives the same bits again", description=VERIFY, epilog=VERIFY_CODES
    )
    words = f"only this one, from the recorded data of those before it: {', '.join(STAGES)}; all of them if left out"
    verify.add_argument("--stage", metavar="NAME", choices=STAGES, help=words)
    verify.set_defaults(run_command=_verify)
    sync = commands.add_parser("sync", help="deliver what MLflow has not got yet", description=SYNC, epilog=SYNC_CODES)
    sync.set_defaults(run_command=_sync)
    arguments = parser.parse_args()
    code: int | None = arguments.run_command(arguments)
    return code


def _parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter  # lines stay as they are written
    return argparse.ArgumentParser(prog=prog, description=description, epilog=epilog, formatter_class=raw)


def _add_generate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    generate = commands.add_parser(
        "generate",
        help="text from the trained model",
        description=GENERATE,
        epilog=GENERATE_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    generate.add_argument("prompt", metavar="PROMPT", help="the text to continue; - reads standard input")
    generate.add_argument("--length", type=int, default=50, metavar="N", help="tokens to add (default 50)")
    generate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 = the likeliest (default)")
    generate.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest (default: from all)")
    generate.add_argument("--seed", type=int, default=123, metavar="S", help="one seed, one text (default 123)")
    generate.add_argument("--run", metavar="RUN", help=f"the checkpoint of an {RUN}; data/model if left out")
    generate.set_defaults(run_command=_generate)


# The imports wait inside: MLflow takes seconds to load, and `--help` should not.
def _check(arguments: argparse.Namespace) -> None:
    from reprogpt.commands.check import check

    check()


def _generate(arguments: argparse.Namespace) -> None:
    from reprogpt.commands.generate import Sampling, generate_text

    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    sampling = Sampling(arguments.length, arguments.temperature, arguments.top_k, arguments.seed)
    generate_text(prompt, sampling, arguments.run)


def _compare(arguments: argparse.Namespace) -> int:
    from reprogpt.commands.compare import compare

    return compare(arguments.a, arguments.b)


def _lineage(arguments: argparse.Namespace) -> int:
    from reprogpt.commands.lineage import lineage

    return lineage(arguments.what)


def _verify(arguments: argparse.Namespace) -> int:
    from reprogpt.commands.verify import verify

    return verify(arguments.stage)


def _sync(arguments: argparse.Namespace) -> int:
    from reprogpt.commands.sync import sync

    return sync()


def main() -> None:
    run_program(run)


if __name__ == "__main__":
    main()
