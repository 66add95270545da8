"""Several trainings in one figure each: losses, learning rate, norm of the gradients."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, StrMethodFormatter

from reprogpt.plotting.style import (
    BLACK,
    BLUE,
    GUIDE,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    VERMILLION,
    bin_width,
    figure_style,
    plot_line,
    set_step_axis,
)

METRICS = ("loss", "val_loss", "lr", "grad_norm")  # each is drawn where a run has it
# The first styles are the darkest, since two runs are the usual number. Dashes and markers tell lines apart without
# colour, and gaps show what lies below.
LINE_STYLES: tuple[dict[str, Any], ...] = (
    {"color": BLACK, "linestyle": "-", "marker": "o"},
    {"color": VERMILLION, "linestyle": (0, (5, 1.5)), "marker": "s"},
    {"color": BLUE, "linestyle": (0, (6, 1.5, 1, 1.5)), "marker": "^"},
    {"color": ORANGE, "linestyle": (0, (8, 3.5)), "marker": "D"},
    {"color": SKY, "linestyle": (0, (1.2, 1.2)), "marker": "v"},
    {"color": PURPLE, "linestyle": (0, (4, 1.5, 1, 1.5, 1, 1.5)), "marker": "X"},
)
RING: dict[str, Any] = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "linestyle": ""}
MAX_RUNS = len(LINE_STYLES)
MARKERS = 8  # of one line that is not marked at its evaluations
SHORT = 36  # characters of a label of which two fit into a row


@dataclass(frozen=True)
class RunCurves:
    """What one run recorded. label: its line in the legend. history: metric -> step -> value, with a loss at least.

    tokens_per_step: 0 where it is not known. max_norm: None where it is not known.
    """

    label: str
    history: dict[str, dict[int, float]]
    tokens_per_step: int = 0
    max_norm: float | None = None
    line_style: dict[str, Any] = field(default_factory=dict)

    def series(self, metric: str) -> pd.Series:
        """The metric by step, in their order; empty where the run has none."""
        return pd.Series(self.history.get(metric, {}), name=metric, dtype="float64").sort_index()


def draw_overlay(runs: Sequence[RunCurves], note: str = "") -> dict[str, Figure]:
    """Every figure that the runs share, by the name it is saved under.

    runs: 1 to MAX_RUNS, in the order of the legend. note: a line below the losses, for what can't be compared there.
    Of runs of more than MAX_POINTS steps, medians of several steps are drawn, equally many for each run.
    """
    drawn = [
        RunCurves(run.label, run.history, run.tokens_per_step, run.max_norm, LINE_STYLES[n])
        for n, run in enumerate(runs)
    ]
    return {"losses": _losses(drawn, note), "learning_rate": _learning_rate(drawn), "gradients": _gradients(drawn)}


def _losses(runs: Sequence[RunCurves], note: str) -> Figure:
    """val_loss above, the loss of every step below: in one frame, lines of six runs would hide each other."""
    evaluated = any(len(run.series("val_loss")) for run in runs)
    every = bin_width(_last_step(runs) + 1)
    with figure_style():
        figure, frames = _frames(runs, num_frames=2 if evaluated else 1)
        for axes in frames:
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))
        for number, run in enumerate(runs):
            if evaluated:
                _evaluations(frames[0], run)
            _medians(frames[-1], run, "loss", every, number)
        if evaluated:
            frames[0].set_ylabel("val_loss\n(nats per token)")
        _from_zero(frames[-1])
        frames[-1].set_ylabel(f"{_of(every, 'loss')}\n(nats per token)")
        _tokens_axis(frames[0], runs)
        if note:
            frames[-1].set_xlabel(f"step\n{note}")
        _legend(figure, runs, best=evaluated)
    return figure


def _learning_rate(runs: Sequence[RunCurves]) -> Figure:
    with figure_style():
        figure, (axes,) = _frames(runs)
        for number, run in enumerate(runs):
            rates = run.series("lr")
            _marked(axes, run, rates, number, linewidth=1.2)
        _from_zero(axes)
        axes.set_ylabel("learning rate (lr)")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
        _legend(figure, runs)
    return figure


def _gradients(runs: Sequence[RunCurves]) -> Figure:
    """grad_norm on a log axis, which leaves out 0, and max_norm where all runs have the same."""
    every = bin_width(_last_step(runs) + 1)
    norms = {run.max_norm for run in runs}
    with figure_style():
        figure, (axes,) = _frames(runs)
        axes.set_yscale("log")
        for number, run in enumerate(runs):
            _medians(axes, run, "grad_norm", every, number)
        if len(norms) == 1 and (max_norm := norms.pop()):
            axes.axhline(max_norm, color=GUIDE, linewidth=0.8, linestyle=":")
            axes.text(1.01, max_norm, f"max_norm\n= {max_norm:g}", transform=axes.get_yaxis_transform(), va="center")
        axes.set_ylabel(_of(every, "grad_norm"))
        _legend(figure, runs)
    return figure


def _frames(runs: Sequence[RunCurves], num_frames: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with frames above each other on one axis of steps, and with room for the legend."""
    width, height = STYLE["figure.figsize"]
    figure = Figure(figsize=(width, height + 1.4 * (num_frames - 1) + 0.17 * _legend_rows(runs)))
    frames = list(figure.subplots(num_frames, sharex=True, squeeze=False)[:, 0])
    set_step_axis(frames[-1], _last_step(runs))
    return figure, frames


def _from_zero(axes: Axes) -> None:
    highest = axes.dataLim.ymax if axes.has_data() else 0
    axes.set_ylim(0, 1.06 * highest or 1)


def _last_step(runs: Sequence[RunCurves]) -> int:
    return max(step for run in runs for points in run.history.values() for step in points)


def _of(every: int, metric: str) -> str:
    return metric if every == 1 else f"{metric}, median of {every} steps"


def _medians(axes: Axes, run: RunCurves, metric: str, every: int, number: int) -> None:
    """A thin line of all steps, or of the medians of `every` of them, with some markers."""
    values = run.series(metric)
    if axes.get_yscale() == "log":
        values = values.where(values > 0)
    if every > 1:
        bins = values.index // every
        middle = values.groupby(bins).median()
        values = middle.set_axis(pd.Series(values.index).groupby(bins).median())
    _marked(axes, run, values, number, linewidth=0.9)


def _marked(axes: Axes, run: RunCurves, values: pd.Series, number: int, **line_style: Any) -> None:
    """A line with MARKERS markers at most, evenly along the steps, not where the other runs' are."""
    if values.notna().any():
        steps = values.index.to_numpy()
        share = (number + 0.5) / MAX_RUNS
        places = steps[0] + (steps[-1] - steps[0]) * (np.arange(MARKERS) + share) / MARKERS
        marked = sorted(set(np.searchsorted(steps, places).clip(max=len(steps) - 1).tolist()))
        line_style |= run.line_style | {"markevery": marked}
        plot_line(axes, steps, values, **line_style)


def _evaluations(axes: Axes, run: RunCurves) -> None:
    """val_loss with a marker at every evaluation, as long as these are few, and its lowest value ringed."""
    values = run.series("val_loss")
    if len(values):
        every = -(-len(values) // (3 * MARKERS))
        plot_line(axes, values.index.to_numpy(), values, **run.line_style, markevery=every, linewidth=1.2)
        best = values.nsmallest(1)
        axes.plot(best.index.to_numpy(), best.to_numpy(), color=run.line_style["color"], **RING)


def _tokens_axis(axes: Axes, runs: Sequence[RunCurves]) -> None:
    """tokens_seen along the top, if a step of each run reads as many."""
    (tokens, *others) = {run.tokens_per_step for run in runs}
    if tokens and not others:
        # After step k, k + 1 steps have read their tokens.
        both = (lambda step: (np.asarray(step) + 1) * tokens, lambda seen: np.asarray(seen) / tokens - 1)
        top = axes.secondary_xaxis("top", functions=both)
        top.set_xlabel("tokens_seen")
        top.xaxis.set_major_formatter(EngFormatter(sep=""))


def _legend_rows(runs: Sequence[RunCurves]) -> int:
    return -(-len(runs) // _legend_columns(runs))


def _legend_columns(runs: Sequence[RunCurves]) -> int:
    return 2 if all(len(run.label) <= SHORT for run in runs) else 1


def _legend(figure: Figure, runs: Sequence[RunCurves], *, best: bool = False) -> None:
    """One entry a run, whatever it has in this figure: the same legend in all of them."""
    entries = [Line2D([], [], **run.line_style, label=run.label) for run in runs]
    if best:
        entries.append(Line2D([], [], color=BLACK, **RING, label="best val_loss"))
    figure.legend(handles=entries, loc="outside upper center", ncols=_legend_columns(runs))
