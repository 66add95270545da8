"""`reprogpt decide KEY`: tell which value of a parameter is better, from runs with several seeds."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from reprogpt.cli.command import Command
from reprogpt.cli.decide_report import report, unit
from reprogpt.decide.decision import HIGHER_IS_BETTER, Decision, Question, is_numeric, make_decision
from reprogpt.decide.paired import LevelSummary
from reprogpt.decide.stored_values import as_number
from reprogpt.dvc.revisions import queued_experiments
from reprogpt.errors import PipelineError
from reprogpt.messages import print_lines
from reprogpt.params.loader import PARAMS_FILE, read_mapping
from reprogpt.plotting.decide_figures import LevelPoints, PairPoints, draw_levels, draw_pair
from reprogpt.plotting.style import METADATA, save_figure
from reprogpt.tracking.store.client import search_runs

FOLDER = Path("decisions")  # git ignores it


def _names_and_values(
    context: click.Context, parameter: click.Parameter, words: Sequence[str]
) -> list[tuple[str, str]]:
    """Each NAME=VALUE as a pair."""
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{word!r} is not NAME=VALUE")
        pairs.append((name, value))
    return pairs


def _positive(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter(f"{value} is not a number above 0")
    return value


@click.command(cls=Command)
@click.argument(
    "keys",
    metavar="KEY...",
    nargs=-1,
    required=True,
    help="a parameter of train whose values are compared. With two, combinations of their values are compared",
)
@click.option(
    "--metric",
    metavar="NAME",
    default="final_val_loss",
    show_default=True,
    help="Compare this metric of the runs, such as best_val_loss or final_train_loss.",
)
@click.option(
    "--against",
    metavar="VALUE",
    help="The baseline; for two keys, VALUE,VALUE. Default: the current value in params.yaml.",
)
@click.option(
    "--where",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_names_and_values,
    help="Compare only runs with this parameter, tag or file digest. May be repeated.",
)
@click.option(
    "--needs",
    metavar="D",
    type=float,
    callback=_positive,
    help="Also say how many pairs it takes to detect a difference of D, a number above 0.",
)
@click.option(
    "--higher-is-better",
    is_flag=True,
    help="Higher values of the metric are better. Always on for val_accuracy and tokens_per_second.",
)
def decide(
    keys: Sequence[str],
    metric: str,
    against: str | None,
    where: Sequence[tuple[str, str]],
    *,
    higher_is_better: bool,
    needs: float | None,
) -> int:
    """Tell which value of KEY is better, from finished runs whose inputs are equal except for KEY and seed.

    Runs with the same seed start from the same weights and see the same rows and dropout masks, so they are compared in
    pairs. The command prints a table, a verdict for each value against the baseline, and the commands that queue
    missing runs, and draws a figure into decisions/ (ignored by git). Nothing is trained.

    You can check the verdict after every new seed: the sign test is valid at any time, at the 5 % level. Fewer than six
    pairs never decide. The verdict is about the typical seed and this text: seeds don't vary the text.

    \b
    Exit codes:
      0  every value is decided against the baseline, or identical to it
      1  a value is undecided
      2  there is nothing to compare

    \b
    Examples:
      reprogpt decide peak_lr
      reprogpt decide peak_lr warmup_ratio --against 0.0005,0.2
      reprogpt decide peak_lr --where n_epochs=15 --needs 0.01
    """
    level = None if against is None else tuple(against.split(",", len(keys) - 1))
    higher = higher_is_better or metric in HIGHER_IS_BETTER
    question = Question(tuple(keys), metric, level, dict(where), higher)
    decision = make_decision(question, search_runs(), read_mapping(PARAMS_FILE), list(_queued_params()))
    print_lines(report(decision, needs))
    figures = draw(decision)
    print(f"\nfigure: {' '.join(map(str, figures))}")
    return 0 if decision.decided else 1


def _queued_params() -> Iterator[dict[str, Any]]:
    """params.yaml of each experiment in DVC's queue. Invalid ones are skipped: such an experiment can't train."""
    for experiment in queued_experiments():
        with suppress(PipelineError):
            yield experiment.params


def draw(decision: Decision) -> list[Path]:
    """Write the decision's figure as PNG and PDF into FOLDER; returns their paths."""
    question = decision.question
    name = re.sub(r"[^\w.-]+", "-", "-".join([*question.keys, question.metric]))
    parameter, metric = ", ".join(question.keys), f"{question.metric}{unit(question.metric) and ' (nats per token)'}"
    points = [_points(summary, decision) for summary in decision.summaries]
    if len(points) == 2:
        (comparison,) = decision.comparisons
        points.sort(key=lambda point: not point.is_baseline)
        pair = PairPoints(comparison.differences, comparison.median, comparison.interval)
        figure = draw_pair(points, pair, parameter, metric)
    else:
        figure = draw_levels(points, parameter, metric)
    try:
        save_figure(figure, FOLDER, name)
    except OSError as error:
        raise PipelineError(f"{FOLDER} can't be written: {error.strerror or error}") from None
    return [FOLDER / f"{name}.{kind}" for kind in METADATA]


def _points(summary: LevelSummary, decision: Decision) -> LevelPoints:
    levels = [one.level for one in decision.summaries]
    return LevelPoints(
        label=", ".join(summary.level),
        x=as_number(summary.level[0]) if is_numeric(levels) else None,
        by_seed=summary.values,
        num_failed=summary.num_failed,
        is_baseline=summary.level == decision.baseline,
        on_plateau=summary.level in decision.plateau,
    )
