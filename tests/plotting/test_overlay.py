"""Several trainings in one figure: what is drawn of each, and that they can be told apart without colour."""

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reprogpt.plotting.overlay import LINE_STYLES, MAX_RUNS, METRICS, RunCurves, draw_overlay
from tests.plotting.histories import training

pytestmark = pytest.mark.filterwarnings("error")


def a_run(label: str, num_steps: int = 20, eval_freq: int = 5, **facts: Any) -> RunCurves:
    history = training(num_steps, warmup_steps=4, eval_freq=eval_freq)
    recorded: Any = {metric: history.set_index("step")[metric].dropna().to_dict() for metric in METRICS}
    return RunCurves(label, recorded, **facts)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def drawn(figure: Figure, metric: str, frame: int = 0) -> list[Line2D]:
    return [line for line in figure.axes[frame].get_lines() if line.get_label() == metric]


def test_each_run_is_a_line_in_every_figure_and_the_legend_is_the_same() -> None:
    runs = [a_run("long", 20, tokens_per_step=512), a_run("short", 12, tokens_per_step=512)]
    figures = draw_overlay(runs)
    assert list(figures) == ["losses", "learning_rate", "gradients"]
    assert legend(figures["losses"]) == ["long", "short", "best val_loss"]
    assert legend(figures["learning_rate"]) == legend(figures["gradients"]) == ["long", "short"]
    for name, metric, frame in (
        ("losses", "val_loss", 0),
        ("losses", "loss", 1),
        ("learning_rate", "lr", 0),
        ("gradients", "grad_norm", 0),
    ):
        lines = drawn(figures[name], metric, frame)
        assert len(lines) == 2
        for line, run in zip(lines, runs, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), list(run.history[metric]))
            np.testing.assert_array_equal(line.get_ydata(), list(run.history[metric].values()))
    rings = [line for line in figures["losses"].axes[0].get_lines() if line.get_linestyle() == "None"]
    assert [line.get_xydata().tolist() for line in rings] == [[[10.0, 6.25]]] * 2


def test_lines_differ_in_dash_and_marker_and_the_first_two_in_darkness() -> None:
    runs = [a_run(str(number)) for number in range(MAX_RUNS)]
    lines = drawn(draw_overlay(runs)["losses"], "loss", 1)
    assert (
        len({str(style["linestyle"]) for style in LINE_STYLES})
        == len({style["marker"] for style in LINE_STYLES})
        == MAX_RUNS
    )
    assert [line.get_marker() for line in lines] == [style["marker"] for style in LINE_STYLES]
    assert len({str(line.get_markevery()) for line in lines}) == MAX_RUNS  # none hides another's
    grey = [np.dot(to_rgb(style["color"]), (0.299, 0.587, 0.114)) for style in LINE_STYLES]
    assert grey[0] == 0 and grey[1] < 0.5 and abs(grey[1] - grey[0]) > 0.3
    assert len({style["color"] for style in LINE_STYLES}) == MAX_RUNS


@pytest.mark.parametrize(("tokens", "axes_above"), [((512, 512), 1), ((512, 256), 0), ((0, 0), 0)])
def test_tokens_are_counted_above_where_a_step_of_each_run_reads_as_many(
    tokens: tuple[int, ...], axes_above: int
) -> None:
    figure = draw_overlay([a_run(str(number), tokens_per_step=each) for number, each in enumerate(tokens)])["losses"]
    figure.draw_without_rendering()
    assert len(figure.axes[0].child_axes) == axes_above
    for above in figure.axes[0].child_axes:
        assert above.get_xlim() == pytest.approx([(at + 1) * 512 for at in figure.axes[0].get_xlim()])


@pytest.mark.parametrize(("norms", "texts"), [((0.5, 0.5), ["max_norm\n= 0.5"]), ((0.5, 1.0), []), ((None, None), [])])
def test_max_norm_is_drawn_where_all_have_the_same(norms: tuple[float | None, ...], texts: list[str]) -> None:
    figure = draw_overlay([a_run(str(number), max_norm=norm) for number, norm in enumerate(norms)])["gradients"]
    assert [text.get_text() for text in figure.axes[0].texts] == texts


def test_long_runs_are_medians_of_equally_many_steps() -> None:
    figures = draw_overlay([a_run("long", 1000, eval_freq=50), a_run("short", 10)])
    assert figures["losses"].axes[1].get_ylabel() == "loss, median of 4 steps\n(nats per token)"
    lines: list[Any] = [*drawn(figures["losses"], "loss", 1)]
    long, short = lines
    assert len(long.get_xdata()) == 250 and list(short.get_xdata()) == [1.5, 5.5, 8.5]
    assert short.get_ydata()[0] == np.median([9, 9 / 2, 9 / 3, 9 / 4])
    rates: Any = drawn(figures["learning_rate"], "lr")[0]
    assert len(rates.get_xdata()) == 1000


def test_a_note_stands_below_the_losses() -> None:
    assert draw_overlay([a_run("a"), a_run("b")], "different texts")["losses"].axes[1].get_xlabel() == (
        "step\ndifferent texts"
    )


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([a_run("a", eval_freq=0), a_run("b", eval_freq=0)], id="no evaluations"),
        pytest.param([a_run("one step", 1), a_run("no evaluations", 20, eval_freq=0)], id="one of each"),
        pytest.param([RunCurves("a", {"loss": {0: 9.0}}), RunCurves("b", {"loss": {0: 0.0}})], id="nothing but a loss"),
        pytest.param([RunCurves("a", {"loss": {0: 9.0}, "grad_norm": {0: 0.0}}), a_run("b")], id="no gradient"),
    ],
)
def test_what_a_run_lacks_is_left_out(runs: list[RunCurves]) -> None:
    figures = draw_overlay(runs)
    num_evaluated = sum(bool(run.history.get("val_loss")) for run in runs)
    assert len(figures["losses"].axes) == (2 if num_evaluated else 1)
    assert ("best val_loss" in legend(figures["losses"])) == bool(num_evaluated)
    assert len(drawn(figures["losses"], "val_loss")) == num_evaluated
    for figure in figures.values():
        figure.draw_without_rendering()
        assert legend(figure)[:2] == [run.label for run in runs]


def test_the_longest_label_fits_into_the_figure() -> None:
    figure = draw_overlay([a_run("corrected-with-more-warmup-st…: peak_lr=0.001, +11 more"), a_run("b")])["losses"]
    figure.draw_without_rendering()
    extent = figure.legends[0].get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.x1
