"""The figures of decide: what is drawn, and that all of it is inside the frame."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reprogpt.plotting.decide_figures import LevelPoints, PairPoints, draw_levels, draw_pair
from reprogpt.plotting.style import SHADE, figure_style

VALUES = {1: 6.4, 2: 6.5, 3: 6.45}


def level(label: str, x: float | None = None, shift: float = 0.0, **more: object) -> LevelPoints:
    values = {seed: value + shift for seed, value in VALUES.items()}
    return LevelPoints(label, x, values, **({"num_failed": 0} | more))  # type: ignore[arg-type]


def pair_figure(interval: tuple[float, float] = (-0.15, -0.05)) -> Figure:
    pair = PairPoints(dict.fromkeys(VALUES, -0.1), -0.1, interval)
    return draw_pair([level("0.0005"), level("0.001", shift=-0.1)], pair, "peak_lr", "final_val_loss (nats per token)")


def levels_figure(*levels: LevelPoints) -> Figure:
    return draw_levels(levels, "peak_lr", "final_val_loss (nats per token)")


NUMBERS = [
    level("0.0001", 0.0001, 0.3),
    level("0.0005", 0.0005, is_baseline=True, on_plateau=True),
    level("0.001", 0.001, -0.1, on_plateau=True),
    level("0.01", 0.01, 0.6, num_failed=1),
]


@pytest.mark.parametrize("figure", [pair_figure, lambda: levels_figure(*NUMBERS)])
def test_nothing_is_cut_off(figure: Callable[[], Figure]) -> None:
    drawn = figure()
    with figure_style():
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()
        box = drawn.get_tightbbox(canvas.get_renderer())
    width, height = drawn.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


def test_a_pair_has_a_line_a_seed_and_the_interval_of_the_differences() -> None:
    left, right = pair_figure().axes
    seeds = [line for line in left.lines if line.get_marker() == "o"]
    assert [np.asarray(line.get_ydata()).tolist() for line in seeds] == [
        [value, pytest.approx(value - 0.1)] for value in VALUES.values()
    ]
    assert [-0.15, -0.05] in [np.asarray(line.get_ydata()).tolist() for line in right.lines]
    assert [label.get_text() for label in left.get_xticklabels()] == ["0.0005", "0.001"]


@pytest.mark.parametrize("interval", [(-math.inf, math.inf), (-math.inf, -0.1), (-0.1, math.inf)])
def test_an_interval_without_both_bounds_is_not_drawn(interval: tuple[float, float]) -> None:
    _, right = pair_figure(interval).axes
    assert all(np.isfinite(np.asarray(line.get_ydata(), dtype=float)).all() for line in right.lines)


def test_numbers_that_span_decades_are_on_a_logarithmic_axis() -> None:
    assert levels_figure(*NUMBERS).axes[0].get_xscale() == "log"
    near = [level("0.1", 0.1), level("0.2", 0.2), level("0.3", 0.3)]
    assert levels_figure(*near).axes[0].get_xscale() == "linear"


def test_baseline_and_failures_are_marked_and_the_plateau_is_shaded() -> None:
    (axes,) = levels_figure(*NUMBERS).axes
    assert [text.get_text() for text in axes.texts] == ["baseline", "1 of 4\nfailed"]
    bands = [patch for patch in axes.patches if patch.get_facecolor()[:3] == pytest.approx((0.929,) * 3, abs=0.01)]
    assert len(bands) == 2 and SHADE == "#EDEDED"


def test_several_values_have_a_line_a_seed_through_those_that_have_it_and_medians() -> None:
    lacking = level("0.01", 0.01, 0.6)
    del lacking.by_seed[2]
    (axes,) = levels_figure(level("0.0001", 0.0001), level("0.001", 0.001, -0.1), lacking).axes
    drawn = [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
    assert [pytest.approx(point) for point in drawn[1]] == [[0.0001, 6.5], [0.001, 6.4]]
    assert [pytest.approx(point) for point in drawn[3]] == [[0.0001, 6.45], [0.001, 6.35], [0.01, 7.025]]
    assert len(drawn) == 4


def test_texts_stand_side_by_side() -> None:
    (axes,) = levels_figure(level("cosine"), level("linear"), level("none")).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cosine", "linear", "none"]
    assert list(axes.get_xticks()) == [0, 1, 2]
