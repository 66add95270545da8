"""`reprogpt decide KEY`: which value of a parameter is better, by the runs of several seeds."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from reprogpt.decide.decision import HIGHER_IS_BETTER, Decision, Question, is_numeric, make_decision
from reprogpt.decide.groups import as_number
from reprogpt.decide.paired import LevelSummary
from reprogpt.decide.report import report, unit
from reprogpt.decide.sequential import fixed_interval
from reprogpt.dvc.revisions import queued_experiments
from reprogpt.errors import PipelineError
from reprogpt.params.loader import PARAMS_FILE, read_mapping
from reprogpt.plotting.decide_figures import LevelPoints, PairPoints, draw_levels, draw_pair
from reprogpt.plotting.style import METADATA, save_figure
from reprogpt.tracking.store.client import search_runs

FOLDER = Path("decisions")  # git ignores it


def decide(
    keys: Sequence[str],
    metric: str,
    against: str | None,
    where: Sequence[tuple[str, str]],
    *,
    higher_is_better: bool,
    needs: float | None,
) -> int:
    """Print the decision and draw its figure: 0 if every value is decided against the baseline, else 1.

    against: the baseline's values, separated by commas. Raises PipelineError for a question that can't be asked.
    """
    level = None if against is None else tuple(against.split(",", len(keys) - 1))
    higher = higher_is_better or metric in HIGHER_IS_BETTER
    question = Question(tuple(keys), metric, level, dict(where), higher)
    decision = make_decision(question, search_runs(), read_mapping(PARAMS_FILE), list(_queued_params()))
    print("\n".join(report(decision, needs)))
    figures = draw(decision)
    print(f"\nfigure: {' '.join(map(str, figures))}")
    return 0 if decision.decided else 1


def _queued_params() -> Iterator[dict[str, Any]]:
    """params.yaml of each experiment in DVC's queue, but for those in which it is none: they can't train."""
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
        pair = PairPoints(comparison.differences, comparison.interval, "mean, 95 % interval")
        figure = draw_pair(points, pair, parameter, metric)
    else:
        figure = draw_levels(points, parameter, metric, "mean, 95 % (Student)")
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
        interval=fixed_interval(list(summary.values.values())),
        num_failed=summary.num_failed,
        is_baseline=summary.level == decision.baseline,
        on_plateau=summary.level in decision.plateau,
    )
