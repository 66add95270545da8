"""The figures of one training: histories are read exactly, what is drawn, and that every history can be."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text

from reprogpt.errors import DataError
from reprogpt.plotting.style import save_figure
from reprogpt.plotting.training_figures import draw_all, gradients, learning_rate, losses, read_history
from tests.plotting.histories import FILES, facts, training

pytestmark = pytest.mark.filterwarnings("error")


def lines(figure: Figure) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in figure.axes[0].get_lines()}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def vertical_lines(figure: Figure) -> list[float]:
    """Where lines run the whole height of the frame."""
    points = [np.asarray(line.get_xydata()) for line in figure.axes[0].get_lines()]
    return [float(at[0, 0]) for at in points if at[:, 1].tolist() == [0, 1] and len(set(at[:, 0])) == 1]


def assert_draws(line: Line2D, x: Any, y: Any) -> None:
    np.testing.assert_array_equal(line.get_xdata(), x)
    np.testing.assert_array_equal(line.get_ydata(), y)


# reading


def test_a_history_is_read_to_the_last_bit(tmp_path: Path) -> None:
    written = training(20, warmup_steps=4).assign(loss=np.random.default_rng(0).uniform(0, 11, 20))
    written.to_csv(tmp_path / "history.csv", index=False)
    pd.testing.assert_frame_equal(read_history(tmp_path / "history.csv"), written, check_exact=True)


def test_evaluation_columns_may_be_empty_altogether(tmp_path: Path) -> None:
    training(3, warmup_steps=0, eval_freq=0).to_csv(tmp_path / "history.csv", index=False)
    assert read_history(tmp_path / "history.csv")["val_loss"].dtype == np.float64


HEADER = ",".join(training(1, warmup_steps=0).columns)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        ("", "can't be read"),
        (HEADER + "\n", "has no rows"),
        (HEADER.replace("loss,max_grad,", "") + "\n", "lacks the columns loss, max_grad;"),
        (HEADER + "\n0,0,512,0.1,oops,1,1,1,,\n", "can't be read.*oops"),
        (HEADER + "\n0,0,512,0.1,,1,1,1,,\n", "lacks values of loss,"),
        (HEADER + "\n0,,512,0.1,9,1,1,1,,\n", "can't be read.*integer"),
    ],
)
def test_a_history_that_is_not_one_is_refused_by_name(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "history.csv").write_text(content, "utf-8")
    with pytest.raises(DataError, match=rf"history\.csv .*{message}.*dvc repro"):
        read_history(tmp_path / "history.csv")


def test_a_fact_that_is_absent_is_named() -> None:
    with pytest.raises(
        DataError, match="lacks steps_per_epoch, max_norm, lr_decay, decay_start, first_clipped_step, keep;"
    ):
        draw_all(training(2, warmup_steps=0), {"warmup_steps": 0})


# what is drawn


def test_learning_rate_is_the_lr_of_the_history_over_steps() -> None:
    history = training(20, warmup_steps=4)
    figure = learning_rate(history, 4, "cosine", 4)
    assert_draws(lines(figure)["lr"], history["step"], history["lr"])
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("step", "learning rate (lr)")


def test_the_end_of_warmup_is_a_line_labeled_with_its_step_and_the_peak_with_its_value() -> None:
    figure = learning_rate(training(20, warmup_steps=4), 4, "cosine", 4)
    assert vertical_lines(figure) == [4]
    assert set(texts(figure)) == {"warmup", "cosine decay", "warmup_steps = 4", "peak_lr = 0.0005"}


def test_without_warmup_there_is_no_boundary_to_draw() -> None:
    figure = learning_rate(training(20, warmup_steps=0), 0, "cosine", 0)
    assert vertical_lines(figure) == []
    assert set(texts(figure)) == {"cosine decay", "peak_lr = 0.0005"}


def test_a_rate_that_stays_is_called_constant() -> None:
    assert "constant" in texts(learning_rate(training(20, warmup_steps=4, falling=False), 4, "cosine", 4))
    assert set(texts(learning_rate(training(1, warmup_steps=0), 0, "cosine", 0))) == {"peak_lr = 0.0005"}


def test_the_phases_of_wsd_are_named_and_the_decay_begins_at_a_line() -> None:
    history = training(20, warmup_steps=4)
    history["lr"] = [0.0001] * 4 + [0.0005] * 12 + [0.0005, 0.0003, 0.0002, 0.0001]
    figure = learning_rate(history, 4, "wsd", 16)
    assert vertical_lines(figure) == [4, 16]
    assert {"warmup", "stable", "1-sqrt decay", "decay from step 16"} <= set(texts(figure))
    assert "linear decay" in texts(learning_rate(history, 4, "linear", 4))


def test_losses_are_drawn_where_their_step_ends_in_epochs() -> None:
    history = training(20, warmup_steps=4)
    drawn = lines(losses(history, 5, "last"))
    assert_draws(drawn["loss (every step)"], (history["step"] + 1) / 5, history["loss"])
    evaluated = history[::5]
    assert_draws(drawn["train_loss"], [0.2, 1.2, 2.2, 3.2], evaluated["train_loss"])
    assert_draws(drawn["val_loss"], [0.2, 1.2, 2.2, 3.2], evaluated["val_loss"])


def test_losses_name_their_unit_and_count_epochs_below_and_tokens_above() -> None:
    figure = losses(training(20, warmup_steps=4), 5, "last")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    (above,) = axes.child_axes
    assert (axes.get_xlabel(), axes.get_ylabel(), above.get_xlabel()) == (
        "epoch",
        "loss (nats per token)",
        "tokens_seen",
    )
    assert np.array(above.get_xlim()) == pytest.approx(np.array(axes.get_xlim()) * 5 * 512)


def test_the_best_val_loss_is_ringed_and_named_with_its_value_and_step() -> None:
    figure = losses(training(20, warmup_steps=4), 5, "last")
    assert texts(figure) == ["best val_loss = 6.250 (step 10, epoch 2.2)"]
    (note,) = figure.axes[0].texts
    assert isinstance(note, Annotation) and note.xy == (11 / 5, 6.25)
    assert ([11 / 5], [6.25]) in [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines]  # type: ignore[arg-type]


def test_a_best_val_loss_whose_weights_are_the_model_is_called_kept() -> None:
    figure = losses(training(20, warmup_steps=4), 5, "best")
    assert texts(figure) == ["best val_loss = 6.250 (step 10, epoch 2.2), kept"]


@pytest.mark.parametrize(
    ("num_steps", "eval_freq"), [(1, 1), (2, 1), (12, 5), (20, 5), (20, 10), (200, 5), (3000, 100)]
)
def test_the_name_of_the_best_val_loss_covers_no_line_and_stays_in_the_frame(num_steps: int, eval_freq: int) -> None:
    figure = losses(training(num_steps, warmup_steps=0, eval_freq=eval_freq), 5, "last")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    box = Text.get_window_extent(axes.texts[0])  # an Annotation's own would take its pointer in
    frame = axes.get_window_extent()
    assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    for line in axes.get_lines():
        x, y = axes.transData.transform(line.get_xydata()).T
        along = np.linspace(max(box.x0, x[0]), min(box.x1, x[-1]), 500)
        inside = along[(along >= box.x0) & (along <= box.x1)]
        assert not np.any(np.interp(inside, x, y) > box.y0 - 1), line.get_label()


def test_without_evaluations_only_the_loss_of_every_step_is_drawn() -> None:
    figure = losses(training(20, warmup_steps=4, eval_freq=0), 5, "last")
    assert set(lines(figure)) == {"loss (every step)"}
    assert texts(figure) == []


def test_gradients_are_the_columns_of_the_history_on_a_log_axis() -> None:
    history = training(20, warmup_steps=4)
    figure = gradients(history, 4, 1.0)
    assert figure.axes[0].get_yscale() == "log"
    for name in ("max_grad", "max_grad_clipped", "grad_norm"):
        assert_draws(lines(figure)[name], history["step"], history[name])


def test_max_norm_and_the_first_clipped_step_are_marked_with_their_values() -> None:
    figure = gradients(training(20, warmup_steps=4), 4, 0.5)
    level = [line for line in figure.axes[0].get_lines() if list(line.get_ydata()) == [0.5, 0.5]]  # type: ignore[arg-type]
    assert [line.get_linestyle() for line in level] == ["-."]
    assert vertical_lines(figure) == [4]
    assert texts(figure) == ["max_norm\n= 0.5, for\ngrad_norm", "clipping starts: step 4"]


def test_clipping_from_the_start_is_marked_there() -> None:
    assert vertical_lines(gradients(training(20, warmup_steps=4), 0, 1.0)) == [0]


def test_without_clipping_no_norm_and_no_first_step_are_drawn() -> None:
    figure = gradients(training(20, warmup_steps=4), None, None)
    assert vertical_lines(figure) == [] and texts(figure) == ["not clipped (max_norm: null)"]
    assert set(lines(figure)) == {"grad_norm", "max_grad", "max_grad_clipped"}


def test_max_grad_of_0_or_less_is_left_out_of_the_log_axis() -> None:
    history = training(4, warmup_steps=0)
    history["max_grad"] = [0.1, 0.0, -0.1, 0.2]
    assert_draws(lines(gradients(history, 0, 1.0))["max_grad"], [0, 1, 2, 3], [0.1, np.nan, np.nan, 0.2])


def test_what_a_log_axis_leaves_out_is_counted_and_a_point_without_neighbors_is_a_dot() -> None:
    history = training(5, warmup_steps=0)
    history["max_grad"] = [0.1, 0.2, 0.0, 0.3, -0.1]
    figure = gradients(history, 0, 1.0)
    assert figure.axes[0].get_xlabel() == "step\nvalues of 0 or less are not drawn: at 2 of 5 steps"
    assert (lines(figure)["max_grad"].get_marker(), lines(figure)["max_grad"].get_markevery()) == ("o", [3])
    assert lines(figure)["grad_norm"].get_marker() == "None"


def test_gradients_of_many_steps_are_medians_and_ranges() -> None:
    figure = gradients(training(1000, warmup_steps=0), 0, 1.0)
    (axes,) = figure.axes
    assert axes.get_ylabel() == "gradient (median and range of 4 steps)"
    assert_draws(lines(figure)["grad_norm"], np.arange(1.5, 1000, 4), np.full(250, 1.25))  # of 2, 0.5, 2, 0.5
    ranges = [fill.get_paths()[0].get_extents().intervaly.tolist() for fill in axes.collections]
    np.testing.assert_allclose(ranges, [[0.5, 2], [0.01, 0.04]])


def test_no_axis_of_the_losses_hides_a_power_of_ten_in_its_corner() -> None:
    figure = losses(training(20, warmup_steps=4).assign(loss=lambda rows: 1e7 * rows["loss"]), 5, "last")
    figure.draw_without_rendering()
    assert figure.axes[0].yaxis.get_offset_text().get_text() == ""
    assert "8e+07" in [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_lines_of_one_figure_differ_in_more_than_color() -> None:
    for figure in (losses(training(20, warmup_steps=4), 5, "last"), gradients(training(20, warmup_steps=4), 4, 1.0)):
        named = {name: line for name, line in lines(figure).items() if not name.startswith("_")}
        looks = {(line.get_linestyle(), line.get_marker(), line.get_linewidth()) for line in named.values()}
        assert len(looks) == len(named) == 3
        assert [name for name, line in named.items() if line.get_linestyle() == "--"] in (
            ["val_loss"],
            ["max_grad_clipped"],
        )


def test_a_single_step_is_a_dot_since_a_line_of_one_point_shows_nothing() -> None:
    figures = draw_all(training(1, warmup_steps=0), facts(warmup_steps=0))
    columns = {"lr", "loss (every step)", "max_grad", "max_grad_clipped", "grad_norm"}
    drawn = [line for figure in figures.values() for name, line in lines(figure).items() if name in columns]
    assert [line.get_marker() for line in drawn] == ["o"] * 5


# every history draws


def only_negative_gradients() -> pd.DataFrame:
    return training(20, warmup_steps=4).assign(max_grad=-0.1, max_grad_clipped=-0.1, grad_norm=0.0)


@pytest.mark.parametrize(
    ("history", "warmup_steps"),
    [
        pytest.param(training(1, warmup_steps=0), 0, id="one step"),
        pytest.param(training(1, warmup_steps=0, eval_freq=0), 0, id="one step, no evaluation"),
        pytest.param(training(2, warmup_steps=1, eval_freq=1), 1, id="warmup up to the last step"),
        pytest.param(training(20, warmup_steps=0), 0, id="no warmup"),
        pytest.param(training(20, warmup_steps=4, eval_freq=0), 4, id="no evaluations"),
        pytest.param(training(20, warmup_steps=0, falling=False), 0, id="constant rate"),
        pytest.param(training(20, warmup_steps=4, eval_freq=0).assign(lr=0.0, loss=0.0), 4, id="rate and loss 0"),
        pytest.param(only_negative_gradients(), 4, id="no gradient above 0"),
    ],
)
def test_it_draws_without_a_warning(history: pd.DataFrame, warmup_steps: int) -> None:
    for figure in draw_all(history, facts(warmup_steps=warmup_steps)).values():
        figure.draw_without_rendering()


def test_a_hundred_thousand_jagged_steps_become_small_files(tmp_path: Path) -> None:
    history = training(100_000, warmup_steps=20_000)
    history["loss"] = np.random.default_rng(0).uniform(0, 9, len(history))
    figures = draw_all(history, facts(warmup_steps=20_000, steps_per_epoch=1000))
    for name, figure in figures.items():
        save_figure(figure, tmp_path, name)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert all(path.stat().st_size < 1_000_000 for path in tmp_path.iterdir())
