"""The parts of README.md and docs/ that are made from docs/results.csv: tables, verdicts of `decide`, and figures.

A generated part stands between `<!-- results: BLOCK -->` and `<!-- /results -->`. BLOCK is the name of a function in
BLOCKS and its arguments. A part whose trainings are not in the file yet is empty.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from reprogpt import tags
from reprogpt.cli.decide import draw
from reprogpt.cli.decide_report import number, report, verdicts
from reprogpt.decide.decision import Decision, Question, make_decision
from reprogpt.decide.paired import PairedComparison, sample_deviation
from reprogpt.dvc.revisions import Workspace
from reprogpt.errors import PipelineError
from reprogpt.runs.results import (
    ENVIRONMENT,
    EVALUATIONS,
    NUMBERS,
    RESULTS,
    SHOWN_DIGITS,
    Row,
    code_digest,
    overrides_as_values,
    params_of,
    read_table,
)
from reprogpt.tracking.store.tracked_run import TrackedRun

PUBLISHED = Path("docs/published.csv")  # the losses published with the book's code
PART = re.compile(r"(<!-- results: ([^\n]+?) -->\n).*?(<!-- /results -->)", re.DOTALL)
# Single trainings with the seed of params.yaml, in the order of the tables.
HIGHER = "peak_lr=0.001"
BOOK = f"{HIGHER} random_order=book"
TRAININGS = ("", HIGHER, BOOK)
SMALL_PEAK_LR = "0.005"  # of the small model, where another key is changed
# Name of an image of `decide` -> arguments of its block.
FIGURES = {
    "decide-peak-lr": ("small", "peak_lr", "final_val_loss"),
    "decide-tie-weights": ("small", "tie_weights", "final_val_loss"),
}
OLDER = "†"
FORMATS = {"val_perplexity": ".0f", "best_step": ".0f", "loss_jump": "+.2f", "loss_jump_step": ".0f"}


@dataclass(frozen=True)
class Results:
    """rows: one for each overrides and seed. code: code_digest of the workspace, and params its params.yaml."""

    rows: list[Row]
    evaluations: list[Row]
    published: list[Row]
    code: str
    params: dict[str, Any]

    @property
    def full_size(self) -> list[Row]:
        """The rows of the full-size model."""
        return [row for row in self.rows if not is_small(row)]

    @property
    def pairs(self) -> list[Row]:
        """The full-size rows of both peak_lr, of the seeds that both have."""
        rows = [row for row in self.full_size if row["overrides"] in ("", HIGHER)]
        seeds = [row["seed"] for row in rows]
        return [row for row in rows if seeds.count(row["seed"]) == 2]

    @property
    def small(self) -> list[Row]:
        """The rows of the small model."""
        return [row for row in self.rows if is_small(row)]

    @property
    def trainings(self) -> list[Row]:
        """Those of TRAININGS that are in the file."""
        seed = str(self.params["seed"])
        by_overrides = {row["overrides"]: row for row in self.full_size if row["seed"] == seed}
        return [by_overrides[overrides] for overrides in TRAININGS if overrides in by_overrides]

    def digits(self, row: Row) -> str:
        """The weights' first digits, as `verify` takes them, with a mark if the row is of older code."""
        return f"`{row['weights'][:SHOWN_DIGITS]}`{'' if row['code'] == self.code else OLDER}"

    def remark(self, rows: Sequence[Row]) -> list[str]:
        """A paragraph about those of the rows that are of older code."""
        commits = sorted({row["commit"][:12] for row in rows if row["code"] != self.code})
        return ["", f"{OLDER} Of older code, commit {', '.join(f'`{one}`' for one in commits)}."] if commits else []


def is_small(row: Row) -> bool:
    """Whether it is a training of a smaller model than that of params.yaml."""
    return "emb_dim" in overrides_as_values(row)


def present_results() -> Results:
    """The files of the current folder. Of several rows with the same overrides and seed, one of the present code."""
    workspace = Workspace()
    code = code_digest(workspace)
    rows = sorted(read_table(RESULTS), key=lambda row: row["code"] == code)
    chosen = {(row["overrides"], row["seed"]): row for row in rows}
    in_order = sorted(chosen.values(), key=lambda row: (row["overrides"], int(row["seed"])))
    return Results(in_order, read_table(EVALUATIONS), read_table(PUBLISHED), code, workspace.params)


def pages(results: Results) -> dict[Path, str]:
    """Every page that has generated parts, with its text as the files give it."""
    paths = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
    texts = {path: path.read_text("utf-8") for path in paths}
    return {path: render(text, results) for path, text in texts.items() if PART.search(text)}


def render(text: str, results: Results) -> str:
    """A page's text with its parts made anew. Raises PipelineError for a part that no function makes."""

    def part(match: re.Match[str]) -> str:
        name, *arguments = match[2].split()
        if name not in BLOCKS:
            raise PipelineError(f"results: {name} is none of {', '.join(BLOCKS)}")
        words = [word.split("=")[0] for word in arguments]
        if unknown := [word for word in words if word not in (*NUMBERS, *results.params, "full", "small")]:
            raise PipelineError(f"results: {', '.join(unknown)}: neither a number of a row nor a parameter")
        lines = "\n".join(BLOCKS[name](results, *arguments))
        return f"{match[1]}\n{lines}\n\n{match[3]}" if lines else f"{match[1]}{match[3]}"

    return PART.sub(part, text)


def trainings(results: Results, *columns: str) -> list[str]:
    """Single full-size trainings and their numbers."""
    return _runs(results, results.trainings, columns)


def seeds(results: Results, *columns: str) -> list[str]:
    """The full-size pairs."""
    return _runs(results, results.pairs, columns)


def others(results: Results, *columns: str) -> list[str]:
    """All other full-size trainings, after those with HIGHER of the same seeds."""
    rows = [row for row in results.full_size if row["overrides"] not in TRAININGS]
    seeds = {row["seed"] for row in rows}
    base = [row for row in results.full_size if row["overrides"] == HIGHER and row["seed"] in seeds]
    return _runs(results, base + rows, columns)


def _runs(results: Results, rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """A line per row: its overrides, seed, numbers and weights."""
    cells = [
        [_name(row), row["seed"], *(_cell(row, column) for column in columns), results.digits(row)] for row in rows
    ]
    heading = ["training", "seed", *(f"`{column}`" for column in columns), "weights"]
    return _table(heading, cells) + results.remark(rows)


def _name(row: Row) -> str:
    return f"`{row['overrides']}`" if row["overrides"] else "default"


def _cell(row: Row, column: str) -> str:
    return format(float(row[column]), FORMATS.get(column, ".3f")) if row[column] else ""


def _table(heading: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; [] without cells."""
    lines = [heading, ["---"] * len(heading), *cells]
    return [f"| {' | '.join(line)} |" for line in lines] if cells else []


def steps(results: Results) -> list[str]:
    """Training and validation loss of every evaluation, beside the published ones."""
    rows = results.trainings[::-1]
    by_step = [{line["step"]: line for line in results.published}]
    by_step += [_evaluations(results, row) for row in rows]
    heading = ["step", "published", *(f"{_name(row)} {results.digits(row)}" for row in rows)]
    cells = [[step, *(_losses(column.get(step)) for column in by_step)] for step in by_step[0]]
    return _table(heading, cells) + results.remark(rows) if rows else []


def _evaluations(results: Results, row: Row) -> dict[str, Row]:
    """step -> line of EVALUATIONS."""
    digits = row["weights"][:SHOWN_DIGITS]
    return {line["step"]: line for line in results.evaluations if line["weights"] == digits}


def _losses(line: Row | None) -> str:
    return f"{float(line['train_loss']):.3f} / {float(line['val_loss']):.3f}" if line else ""


def book(results: Results) -> list[str]:
    """How far the training in the book's order is from the published losses."""
    row = next((row for row in results.trainings if row["overrides"] == BOOK), None)
    lines = _evaluations(results, row) if row else {}
    pairs = [(line, lines[line["step"]]) for line in results.published if line["step"] in lines]
    if not pairs:
        return []
    train, val = (max(abs(float(a[name]) - float(b[name])) for a, b in pairs) for name in ("train_loss", "val_loss"))
    return [
        f"Over {len(pairs)} evaluations, the losses of `{BOOK}` are within {train:.4f} (training) and {val:.4f} "
        "(validation) of the published ones."
    ]


def decision(results: Results, size: str, key: str, metric: str, *where: str) -> Decision | None:
    """What `decide` would say of the trainings of this size, full or small; None if there is nothing to compare.

    where: NAME=VALUE. The small model's baseline has SMALL_PEAK_LR.
    """
    rows, against, chosen = results.small, None, dict(word.split("=", 1) for word in where)
    if size == "full":
        rows = results.pairs if key == "peak_lr" else results.full_size
    elif key == "peak_lr":
        against = (SMALL_PEAK_LR,)
    else:
        chosen["peak_lr"] = SMALL_PEAK_LR
    question = Question((key,), metric, against, chosen)
    try:
        return make_decision(question, [_as_run(row, results) for row in rows], results.params)
    except PipelineError:
        return None


def _as_run(row: Row, results: Results) -> TrackedRun:
    """The MLflow run that a row was read from, as far as `decide` reads it.

    Rows of older code get today's defaults: their TRAIN_CODE keeps them in a group of their own.
    """
    name = f"{row['overrides']} {row['seed']}"
    return TrackedRun(
        id=row["weights"],
        name=name,
        status="FINISHED",
        params={key: str(value) for key, value in params_of(row, results.params).items()},
        tags={
            tags.RUN_KEY: name,
            tags.TRAIN_CODE: row["code"],
            tags.WEIGHTS_SHA256: row["weights"],
            **{tag: row[tag] for tag in ENVIRONMENT},
        },
        metrics={name: float(row[name]) for name in NUMBERS if row[name]},
    )


def compared(results: Results, decided: Decision) -> list[Row]:
    """The rows that a decision compares."""
    weights = {one.run.id for by_seed in decided.group.observations.values() for one in by_seed.values()}
    return [row for row in results.rows if row["weights"] in weights]


def decide(results: Results, size: str, key: str, metric: str, *where: str) -> list[str]:
    """The output of `decide` for the trainings of this size, full or small. where: NAME=VALUE."""
    decided = decision(results, size, key, metric, *where)
    return ["```text", *report(decided), "```", *results.remark(compared(results, decided))] if decided else []


def verdict(results: Results, size: str, key: str, *metrics: str) -> list[str]:
    """What `decide` says of each value of the key by each of these metrics, as a list."""
    said: list[str] = []
    rows: list[Row] = []
    for metric in metrics:
        decided = decision(results, size, key, metric)
        if decided is not None:
            said += [f"- By `{metric}`: {line}." for line in verdicts(decided)[: len(decided.comparisons)]]
            rows += compared(results, decided)
    return said + results.remark(rows)


def small(results: Results, *keys: str) -> list[str]:
    """final_val_loss of the small model with other values of these keys, in pairs with that of SMALL_PEAK_LR."""
    cells: list[list[str]] = []
    rows: list[Row] = []
    for key in keys:
        decided = decision(results, "small", key, "final_val_loss")
        if decided is None:
            continue
        rows += compared(results, decided)
        comparisons = {one.level: one for one in decided.comparisons}
        for one in decided.summaries:
            values = list(one.values.values())
            means = [number(fmean(values)), number(sample_deviation(values))]
            if one.level in comparisons:
                cells.append([f"`{key}={one.level[0]}`", *means, *_differences(comparisons[one.level])])
            elif not any(line[0] == "none" for line in cells):
                cells.append(["none", *means, "", "", "", ""])
    heading = ["change", "`final_val_loss`, mean", "deviation", "mean difference", "better", "correlation"]
    return _table([*heading, "pairing saves"], cells) + results.remark(rows)


def _differences(one: PairedComparison) -> list[str]:
    better = f"{one.signs[0]} of {one.num_pairs}"
    return [number(one.mean, signed=True), better, f"{one.correlation:.2f}", f"{one.variance_ratio:.1f}"]


BLOCKS: dict[str, Callable[..., list[str]]] = {
    "trainings": trainings,
    "seeds": seeds,
    "others": others,
    "steps": steps,
    "book": book,
    "decide": decide,
    "verdict": verdict,
    "small": small,
}


def write_figures(results: Results) -> None:
    """Draw FIGURES into docs/images, as `decide` draws them."""
    for name, arguments in FIGURES.items():
        decided = decision(results, *arguments)
        if decided is not None:
            png = next(path for path in draw(decided) if path.suffix == ".png")
            shutil.copy(png, Path("docs/images") / f"{name}.png")
