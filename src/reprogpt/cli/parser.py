"""The command line: its commands, their arguments and help. Imports nothing heavy, so that --help is fast."""

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from textwrap import dedent, indent

from reprogpt.params.sampling_limits import (
    MAX_NEW_TOKENS,
    MAX_SEED,
    MAX_TEMPERATURE,
    MAX_TOP_K,
    TEMPERATURE_RANGE,
    is_valid_temperature,
)

DESCRIPTION = """\
`dvc repro` trains the model. These commands generate text with it, and compare, verify and trace its
results. Run them from the root of a clone. `reprogpt` and `python -m reprogpt` are the same."""
EPILOG = """\
examples:
  reprogpt generate "Every effort moves you" --length 20
  reprogpt compare corrected book

exit codes:
  0  done; where the command answers a question: yes
  1  the answer is no (each command's help says of what)
  2  it can't be done, and the message says why and what to do
  130 after Ctrl-C, 143 after SIGTERM or SIGHUP, 141 if the reader of the output has closed the pipe

`reprogpt COMMAND --help` describes one command, with examples."""


STAGES = ("fetch", "split", "tokenize", "train", "evaluate", "plot")
RUN = "MLflow run: its id, the first 6 or more digits of it, its name (the newest) or its DVC experiment's"


@dataclass(frozen=True)
class Command:
    """A command and its help. add_arguments: declares its arguments on its parser."""

    name: str
    summary: str
    description: str
    codes: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]


def _model_name(text: str) -> str:
    """A name that a models:/ URI can hold."""
    if not re.fullmatch(r"[\w.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} has more than letters, digits, dots, dashes and underscores")
    return text


def _whole_number(minimum: int, maximum: int) -> Callable[[str], int]:
    """A parser of whole numbers within these bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {minimum} to {maximum}")
        return value

    return parse


def _temperature(text: str) -> float:
    """0, or a number within the bounds of sampling_limits.py."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_valid_temperature(value):
        raise argparse.ArgumentTypeError(f"{text} is not {TEMPERATURE_RANGE}")
    return value


def _add_no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help=RUN)
    parser.add_argument("b", metavar="B", help="the other one, named in the same ways")


def _add_lineage(parser: argparse.ArgumentParser) -> None:
    words = f"{RUN}; or a DVC experiment; or a git commit, branch or tag; the workspace if left out"
    parser.add_argument("what", metavar="WHAT", nargs="?", help=words)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    words = f"only this one, from the recorded data of those before it: {', '.join(STAGES)}; all of them if left out"
    parser.add_argument("--stage", metavar="NAME", choices=STAGES, help=words)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    words = "the text to continue; - reads it from standard input; start_context of params.yaml if left out"
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help=words)
    words = "tokens to add, at least 1 (max_new_tokens of params.yaml)"
    parser.add_argument("--length", metavar="N", type=_whole_number(1, MAX_NEW_TOKENS), help=words)
    words = (
        f"0 takes the likeliest token each time; up to {MAX_TEMPERATURE:g}, more varied (temperature of params.yaml)"
    )
    parser.add_argument("--temperature", metavar="T", type=_temperature, help=words)
    words = "draw from the K likeliest tokens, at least 1 (top_k of params.yaml)"
    parser.add_argument("--top-k", metavar="K", type=_whole_number(1, MAX_TOP_K), help=words)
    words = "decides every draw: the same seed, the same text; at least 0 (seed of params.yaml)"
    parser.add_argument("--seed", metavar="S", type=_whole_number(0, MAX_SEED), help=words)
    parser.add_argument("--run", metavar="RUN", help=f"use its model instead of data/model. {RUN}")
    words = 'PROMPT, which may be "", begins a document; for a model that was trained on several'
    parser.add_argument("--from-start", action="store_true", help=words)


def _add_register(parser: argparse.ArgumentParser) -> None:
    words = "of the registered model: letters, digits, dots, dashes and underscores; made if it is not there"
    parser.add_argument("name", metavar="NAME", type=_model_name, help=words)
    words = f"its model, not that of the run which made data/model. {RUN}"
    parser.add_argument("--run", metavar="RUN", help=words)


CHECK = Command(
    "check",
    "report every problem of params.yaml",
    """\
    Check params.yaml for all stages at once: values out of range, wrong types, missing keys, and
    keys that no stage reads. Nothing is run and nothing is changed.""",
    """\
    0 if there is no problem, 2 if there is one or more
    """,
    """\
    reprogpt check && dvc repro
    """,
    _add_no_arguments,
)
GENERATE = Command(
    "generate",
    "generate text with the trained model",
    """\
    Print PROMPT and the model's continuation to standard output, each character as soon as it is
    generated, and a final newline. Options default to params.yaml, so the same command gives the same
    text; another --seed gives another one. With --temperature 0 it is evaluate's greedy sample, for
    the same prompt. A model that was trained on several documents ends its text before max_new_tokens
    where it ends a document, unless stop_at_end_of_text of params.yaml is false.

    One newline at the end of standard input is not part of the prompt. A PROMPT that begins with a
    dash needs -- before it. The model sees the last context_length tokens. It computes in fp32, on a
    GPU if there is one, whatever params.yaml says of device, precision, matmul and numerics.""",
    """\
    0 if the text is complete, 2 if it can't be generated: no model, a prompt that is empty or has
    tokens outside the vocabulary, an option out of bounds; 130 after Ctrl-C, 141 on a closed pipe
    """,
    """\
    reprogpt generate "Every effort moves you" --length 20
    reprogpt generate --temperature 0
    reprogpt generate "He said" --seed 7 --top-k 50 --run corrected
    reprogpt generate - < prompt.txt | head -n 3
    reprogpt generate --from-start ""
    """,
    _add_generate,
)
REGISTER = Command(
    "register",
    "register a trained model in MLflow's model registry",
    """\
    Register the model of the run that trained data/model, or of another run, as the next version of
    NAME in the MLflow store's registry, and print how to serve it. The weights are not copied. A model
    that is already a version of NAME gets no second one.""",
    """\
    0 if the model is a version of NAME, 2 if it can't be: no such run, or one that did not finish
    """,
    """\
    reprogpt register gpt                the workspace's
    reprogpt register gpt --run corrected
    """,
    _add_register,
)
COMPARE = Command(
    "compare",
    "show the differences between two runs",
    """\
    Print the differences between two runs: inputs, code, environment, the first step whose recorded
    values differ in their bits and the difference of the losses from there on, results, weights.""",
    """\
    0 if parameters, text, tokens, every recorded step, results and weights are identical to the
    bit (code and environment may differ), 1 if not, 2 if a run can't be found
    """,
    """\
    reprogpt compare corrected book      by name
    reprogpt compare 3f9a1c b2774e       by the first digits of the ids
    """,
    _add_compare,
)
LINEAGE = Command(
    "lineage",
    "trace where a result comes from, and check it",
    """\
    Print the chain raw text -> train and validation text -> tokens -> weights -> results -> plots as
    dvc.lock records it, whether each link holds, the MLflow runs that it belongs to, and the commands
    that restore it.""",
    """\
    0 if every link that can be checked holds, 1 if one does not, 2 if WHAT can't be found
    """,
    """\
    reprogpt lineage                     of the workspace's result
    reprogpt lineage corrected           of a run or a DVC experiment
    reprogpt lineage HEAD~1              of a commit
    """,
    _add_lineage,
)
VERIFY = Command(
    "verify",
    "rerun the recorded run and compare the bits",
    """\
    Rerun what dvc.lock records in a temporary clone, which is removed afterwards, and compare every
    out with the recorded digest. Workspace, DVC cache and MLflow store are not changed. If an out
    differs, the stage at which the difference begins is named, and what explains it: differences in
    text, environment and versions. The table goes to standard output, the stages' output to standard
    error.""",
    """\
    0 if every out is the same to the bit, 1 if one is not, 2 if it can't be tried: code, parameters
    or data are not the recorded ones, no room in the temporary folder (TMPDIR), a stage that fails
    """,
    """\
    reprogpt verify                      takes as long as `dvc repro --force`
    reprogpt verify --stage tokenize     one stage
    """,
    _add_verify,
)


def _name_and_value(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _add_decide(parser: argparse.ArgumentParser) -> None:
    words = "a parameter of train whose values are compared; of two, each combination of values is one"
    parser.add_argument("keys", metavar="KEY", nargs="+", help=words)
    words = "of each run; final_val_loss if left out; best_val_loss, final_train_loss, or any other"
    parser.add_argument("--metric", metavar="NAME", default="final_val_loss", help=words)
    words = "the baseline (of two keys: VALUE,VALUE); the present value in params.yaml if left out"
    parser.add_argument("--against", metavar="VALUE", help=words)
    words = "only runs with this parameter, tag or file digest; may be repeated"
    parser.add_argument("--where", metavar="NAME=VALUE", type=_name_and_value, action="append", default=[], help=words)
    words = "say how many pairs a difference of D needs"
    parser.add_argument("--needs", metavar="D", type=_positive, help=words)
    words = "of the metric; val_accuracy and tokens_per_second are known to be"
    parser.add_argument("--higher-is-better", action="store_true", help=words)


DECIDE = Command(
    "decide",
    "tell which value of a parameter is better, by several seeds",
    """\
    Compare the values of KEY by finished runs whose inputs are equal but for KEY and seed. Runs of one
    seed start from the same weights and see the same rows and dropout masks, so they are compared in
    pairs. Print a table, a verdict for each value against the baseline, and the commands that queue
    the runs which are missing; draw a figure into decisions/ (ignored by git). Nothing is trained.

    The verdict may be looked at after every new seed: the test is valid at any time, at 5 %. Fewer
    than three pairs never decide. Seeds don't vary the text, so it is about this text.""",
    """\
    0 if every value is decided against the baseline (or identical to it), 1 if one is undecided, 2 if
    there is nothing to compare
    """,
    """\
    reprogpt decide peak_lr
    reprogpt decide peak_lr warmup_ratio --against 0.0005,0.2
    reprogpt decide peak_lr --where n_epochs=15 --needs 0.01
    """,
    _add_decide,
)
SYNC = Command(
    "sync",
    "upload the records that wait for MLflow, and what it has lost",
    """\
    Upload to MLflow the records that wait in .reprogpt/outbox because the store was not available when
    they were made. The next stage that runs does the same; here, records that the store refused are
    tried again, too. Where MLflow has lost points of the run of data/model, or the run, these are then
    uploaded from data/metrics/history.csv.""",
    """\
    0 if nothing waits any longer, 1 if any record is not uploaded, 2 if the store can't be used
    """,
    """\
    reprogpt sync
    """,
    lambda _: None,
)


COMMANDS = (CHECK, GENERATE, REGISTER, COMPARE, DECIDE, LINEAGE, VERIFY, SYNC)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; what it returns names the command in `command`."""
    parser = argparse.ArgumentParser(
        prog="reprogpt", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        subparser = commands.add_parser(
            command.name,
            help=command.summary,
            description=dedent(command.description),
            epilog=_section("exit codes", command.codes) + "\n" + _section("examples", command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
    return parser


def _section(title: str, lines: str) -> str:
    return f"{title}:\n{indent(dedent(lines), '  ')}"
