"""The figures of `reprogpt decide`: two values paired by seed, or a metric over the values of a parameter."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

from reprogpt.plotting.style import BLACK, BLUE, GUIDE, SHADE, STYLE, VERMILLION, figure_style

LOG_SPAN = 5  # largest over smallest value from which the axis is logarithmic
SEED: dict[str, Any] = {"marker": "o", "color": GUIDE, "markersize": 3, "linewidth": 0.6}
MAX_TICK = 14  # characters of a value below the axis
CROWDED = 6  # more labels on one axis are turned


@dataclass(frozen=True)
class LevelPoints:
    """One value of the parameter. x: the value if it is a number, None for text. by_seed: the metric of each seed.

    num_failed: runs that diverged or died, which have no metric.
    """

    label: str
    x: float | None
    by_seed: dict[int, float]
    num_failed: int
    is_baseline: bool = False
    on_plateau: bool = False

    @property
    def median(self) -> float:
        """Of the seeds with a metric; NaN for none."""
        return median(self.by_seed.values()) if self.by_seed else math.nan


@dataclass(frozen=True)
class PairPoints:
    """The differences of two values by seed: second minus first.

    median, interval: of all pairs. In differences are those of which both runs have a metric.
    """

    differences: dict[int, float]
    median: float
    interval: tuple[float, float]


def draw_pair(levels: Sequence[LevelPoints], pair: PairPoints, parameter: str, metric: str) -> Figure:
    """Left: a line per seed from the first value to the second. Right: the differences, their median and interval."""
    first, second = levels
    with figure_style():
        width, height = STYLE["figure.figsize"]
        figure = Figure(figsize=(width, height + 0.3))
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        for seed in pair.differences:
            left.plot([0, 1], [first.by_seed[seed], second.by_seed[seed]], color=GUIDE, linewidth=0.9, marker="o")
        for position, level in enumerate(levels):
            alone = [value for seed, value in level.by_seed.items() if seed not in pair.differences]
            left.plot([position] * len(alone), alone, linestyle="", marker="x", color=GUIDE)
            left.plot([position - 0.12, position + 0.12], [level.median] * 2, color=VERMILLION, linewidth=2)
        _value_ticks(left, range(2), levels, parameter)
        left.set_xlim(-0.35, 1.35)
        left.set_ylabel(metric)
        _differences(right, pair)
        right.set_xlabel(f"{_cut(second.label)} minus {_cut(first.label)}")
        entries = [
            Line2D([], [], color=GUIDE, linewidth=0.9, marker="o", label="a seed"),
            Line2D([], [], color=VERMILLION, linewidth=2, label="median"),
            Line2D([], [], color=BLUE, linewidth=1.6, marker="D", label="median, 95 % interval"),
        ]
        figure.legend(handles=entries, loc="outside upper center", ncols=3)
    return figure


def draw_levels(levels: Sequence[LevelPoints], parameter: str, metric: str) -> Figure:
    """The metric over the values: a line per seed, medians, failed runs, the baseline, the plateau.

    Numbers are on an axis, logarithmic from LOG_SPAN on; texts are side by side.
    """
    numbers = [level.x for level in levels if level.x is not None]
    is_numeric = len(numbers) == len(levels)
    x = numbers if is_numeric else [float(position) for position in range(len(levels))]
    with figure_style():
        width, height = STYLE["figure.figsize"]
        figure = Figure(figsize=(width, height + 0.3))
        axes = figure.add_subplot()
        if is_numeric and min(x) > 0 and max(x) / min(x) >= LOG_SPAN:
            axes.set_xscale("log")
        _plateau(axes, levels, x, is_numeric=is_numeric)
        for seed in sorted({seed for level in levels for seed in level.by_seed}):
            points = [(at, level.by_seed[seed]) for at, level in zip(x, levels, strict=True) if seed in level.by_seed]
            axes.plot([at for at, _ in points], [value for _, value in points], zorder=1, **SEED)
        medians = [(at, level.median) for at, level in zip(x, levels, strict=True) if level.by_seed]
        style: dict[str, Any] = {"marker": "D", "color": BLUE, "markerfacecolor": "white", "markersize": 7}
        style |= {"linestyle": "", "zorder": 2}
        axes.plot([at for at, _ in medians], [value for _, value in medians], **style)
        axes.set_ylabel(metric)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))
        _value_ticks(axes, x, levels, parameter)
        _marks(axes, levels, x)
        entries = [
            Line2D([], [], label="a seed", **SEED),
            Line2D([], [], **style, label="median"),
            Line2D([], [], color=SHADE, linewidth=7, label="plateau: not decided to be worse"),
        ]
        figure.legend(handles=entries, loc="outside upper center", ncols=3, handlelength=2, columnspacing=1.2)
    return figure


def _differences(axes: Axes, pair: PairPoints) -> None:
    values = list(pair.differences.values())
    offsets = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else np.zeros(len(values))
    axes.axhline(0, color=BLACK, linewidth=0.8)
    axes.plot(offsets, values, linestyle="", marker="o", color=GUIDE)
    low, high = pair.interval
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([0.45, 0.45], [low, high], color=BLUE, linewidth=1.6)
    if math.isfinite(pair.median):
        axes.plot([0.45], [pair.median], marker="D", color=BLUE, markersize=5)
    axes.set_xlim(-0.45, 0.65)
    axes.xaxis.set_major_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.4g}"))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_ylabel("difference, one dot per seed")


def _plateau(axes: Axes, levels: Sequence[LevelPoints], x: Sequence[float], *, is_numeric: bool) -> None:
    """A band behind each value on the plateau."""
    edges = _edges(x, logarithmic=axes.get_xscale() == "log") if is_numeric else [at - 0.5 for at in [*x, len(x)]]
    for position, level in enumerate(levels):
        if level.on_plateau:
            axes.axvspan(edges[position], edges[position + 1], color=SHADE, linewidth=0, zorder=0)


def _edges(x: Sequence[float], *, logarithmic: bool) -> list[float]:
    """The edges between the values and outside the first and last: one more than there are values."""
    points = np.log(x) if logarithmic else np.asarray(x, dtype=float)
    middle = (points[1:] + points[:-1]) / 2
    edges = np.concatenate([[2 * points[0] - middle[0]], middle, [2 * points[-1] - middle[-1]]])
    return [float(edge) for edge in (np.exp(edges) if logarithmic else edges)]


def _value_ticks(axes: Axes, x: Sequence[float], levels: Sequence[LevelPoints], parameter: str) -> None:
    axes.xaxis.set_major_locator(FixedLocator(list(x)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(list(x), [_cut(level.label) for level in levels])
    if len(levels) > CROWDED or max(len(level.label) for level in levels) > MAX_TICK:
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel(parameter)


def _marks(axes: Axes, levels: Sequence[LevelPoints], x: Sequence[float]) -> None:
    """Above the frame: which value is the baseline, and how many runs failed."""
    for at, level in zip(x, levels, strict=True):
        total = len(level.by_seed) + level.num_failed
        words = ["baseline"] if level.is_baseline else []
        words += [f"{level.num_failed} of {total}\nfailed"] if level.num_failed else []
        if words:
            place: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
            axes.annotate("\n".join(words), (at, 1), (0, 3), ha="center", va="bottom", **place)


def _cut(text: str) -> str:
    return text if len(text) <= 2 * MAX_TICK else f"{text[: 2 * MAX_TICK - 1]}…"
