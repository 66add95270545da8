"""The committed results of trainings: docs/results.csv, a row per run, and docs/evaluations.csv, their evaluations.

`python -m tools.results` writes both files from MLflow and makes the tables of the documentation from them;
`reprogpt verify ROW` trains a row again. Numbers are the shortest decimals that read back to the same bits.
"""

import csv
import io
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from reprogpt.dvc.pipeline import run_key_of
from reprogpt.dvc.revisions import Revision
from reprogpt.errors import ParamsError, PipelineError
from reprogpt.params.loader import parse_mapping
from reprogpt.step_record import EVAL_METRICS

RESULTS = Path("docs/results.csv")
EVALUATIONS = Path("docs/evaluations.csv")
NUMBERS = (
    *("final_train_loss", "final_val_loss", "val_perplexity", "val_bits_per_byte", "val_accuracy"),
    *("last_train_loss", "last_val_loss", "best_val_loss", "best_step", "loss_jump", "loss_jump_step"),
)
ENVIRONMENT = ("device", "cpu_model", "threads", "matmul", "torch")  # the MLflow run's tags of these names
# overrides: the values in which params.yaml differed from that of the commit, without the seed. code: code_digest of
# the commit. weights: SHA-256 of model.safetensors. seconds: from the start of the run to its last step.
COLUMNS = ("overrides", "seed", *NUMBERS, "weights", "seconds", "commit", "code", *ENVIRONMENT)
EVALUATION_COLUMNS = ("weights", "step", *EVAL_METRICS)
MIN_DIGITS = 6  # of the weights' digest, that name a row
SHOWN_DIGITS = 8  # of the weights' digest, in tables and in EVALUATIONS

Row = dict[str, str]  # column -> cell; "" where the run has no such value


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV file with a header; [] without a file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table_csv(columns: Iterable[str], rows: Iterable[Row]) -> str:
    """The text of a CSV file with these rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def find_row(digits: str) -> Row:
    """The row whose weights' digest begins so. Raises PipelineError if there is none, or several."""
    rows = read_table(RESULTS)
    if not re.fullmatch(f"[0-9a-fA-F]{{{MIN_DIGITS},64}}", digits):
        raise PipelineError(
            f"{digits} is no digest: give the first {MIN_DIGITS} or more hexadecimal digits of the weights' SHA-256,\n"
            "as the tables of docs/results.md have them"
        )
    named = [row for row in rows if row["weights"].startswith(digits.lower())]
    if not named:
        raise PipelineError(f"{digits} names none of the {len(rows)} rows of {RESULTS}; docs/results.md has them")
    if len(named) > 1:
        listed = "\n".join(f"  {row['weights'][:16]}  {label(row)}" for row in named)
        raise PipelineError(f"{digits} names {len(named)} rows of {RESULTS}; give more digits:\n{listed}")
    return named[0]


def label(row: Row) -> str:
    """The row's overrides and seed, for messages."""
    return f"{row['overrides'] or 'default'}, seed {row['seed']}"


def overrides_of(params: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """`peak_lr=0.001 random_order=book`: the values in which params differs from base, sorted, without the seed.

    The words are separated as in a shell; each value is YAML.
    """
    changed = {
        key: params[key] for key in sorted(params) if key != "seed" and (key not in base or params[key] != base[key])
    }
    return shlex.join(f"{key}={_yaml(value)}" for key, value in changed.items())


def _yaml(value: Any) -> str:
    """The value as JSON, which YAML 1.2 includes; a text that YAML reads as itself stays as it is."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and _values([f"_={value}"]) == {"_": value}
    return value if is_plain else json.dumps(value)


def _values(words: Iterable[str]) -> dict[str, Any]:
    lines = "\n".join(word.replace("=", ": ", 1) for word in words)
    return parse_mapping(lines.encode(), "overrides") if lines else {}


def overrides_as_values(row: Row) -> dict[str, Any]:
    """A row's overrides as params.yaml would hold them."""
    try:
        return _values(shlex.split(row["overrides"]))
    except (ParamsError, ValueError) as error:
        raise PipelineError(f"{RESULTS}: {row['overrides']!r} can't be read: {error}") from None


def params_of(row: Row, base: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a row. base: params.yaml of its commit."""
    return {**base, **overrides_as_values(row), "seed": int(row["seed"])}


def code_digest(revision: Revision) -> str:
    """Digest of what the numbers of a row depend on besides its overrides: code, pinned packages and params.yaml.

    A row whose digest is another than the workspace's is of older code. It needs no git history, which CI lacks.
    """
    deps = {dep for stage in ("train", "evaluate") for dep in revision.stages[stage]["deps"]}
    code = {dep: revision.digest(dep) for dep in deps if dep.startswith(("src/", "stages/", "requirements.lock"))}
    return run_key_of({"deps": code, "params": revision.params})


def numbers_of(
    losses: Mapping[int, float], evaluations: Mapping[int, Mapping[str, float]], final: Mapping[str, float]
) -> Row:
    """The cells of NUMBERS that a training has.

    losses: of each step's batch. evaluations: step -> EVAL_METRICS. final: eval.json.
    loss_jump is the largest rise of the loss from one step to the next, in nats, and loss_jump_step the higher step.
    """
    numbers: dict[str, float] = dict(final)
    if evaluations:
        numbers |= {f"last_{name}": evaluations[max(evaluations)][name] for name in EVAL_METRICS}
        best = min(evaluations, key=lambda step: (evaluations[step]["val_loss"], step))
        numbers |= {"best_val_loss": evaluations[best]["val_loss"], "best_step": best}
    rises = {step: losses[step] - losses[previous] for previous, step in pairwise(sorted(losses))}
    if rises:
        jump = max(rises, key=lambda step: rises[step])
        numbers |= {"loss_jump": rises[jump], "loss_jump_step": jump}
    return {name: repr(numbers[name]) for name in NUMBERS if name in numbers}


def evaluation_rows(weights: str, evaluations: Mapping[int, Mapping[str, float]]) -> list[Row]:
    """The rows of EVALUATIONS for the training with these weights."""
    return [
        {"weights": weights[:SHOWN_DIGITS], "step": str(step)} | {name: repr(values[name]) for name in EVAL_METRICS}
        for step, values in sorted(evaluations.items())
    ]
