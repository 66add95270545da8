"""The figures of one training: learning rate, losses, gradients."""

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, StrMethodFormatter

from reprogpt.errors import DataError
from reprogpt.plotting.style import (
    BLACK,
    BLUE,
    GUIDE,
    ORANGE,
    SHADE,
    SKY,
    VERMILLION,
    annotate_above,
    annotate_beside,
    bin_width,
    evaluation_line,
    figure_style,
    new_figure,
    plot_line,
    set_step_axis,
)
from reprogpt.step_record import EVAL_METRICS, STEP_METRICS

COUNTS = ("step", "epoch", "tokens_seen")
GRADIENTS = ("grad_norm", "max_grad", "max_grad_clipped")
SUMMARY_KEYS = ("warmup_steps", "steps_per_epoch", "max_norm", "lr_decay", "decay_start", "first_clipped_step", "keep")
# lr_decay of params.yaml -> label of the decay; `none` has no decay
DECAYS = {"cosine": "cosine decay", "linear": "linear decay", "wsd": "1-sqrt decay"}


def read_history(path: Path) -> pd.DataFrame:
    """The rows of history.csv, one per step: counts as int64, other columns as exact float64.

    train_loss and val_loss are NaN for steps that were not evaluated; no other value is missing.
    Raises DataError, naming the file, if it can't be read, lacks a column or a value, or has no rows.
    """
    dtypes = dict.fromkeys(COUNTS, "int64") | dict.fromkeys(STEP_METRICS + EVAL_METRICS, "float64")
    again = "run `dvc repro train` to write it again"
    try:
        # Not read by pandas: its parser turns Ctrl-C during a read into another error.
        text = io.StringIO(path.read_text("utf-8"))
        cells = pd.read_csv(text, dtype=str)  # pandas before 3.1 rounds when parsing floats; astype does not
        if absent := [name for name in dtypes if name not in cells.columns]:
            raise DataError(f"{path} lacks the columns {', '.join(absent)}; {again}")
        history = cells.astype(dtypes)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as a training history: {error}; {again}") from error
    if history.empty:
        raise DataError(f"{path} has no rows, at least 1 step is needed; {again}")
    if holes := [name for name in STEP_METRICS if history[name].isna().any()]:
        raise DataError(f"{path} lacks values of {', '.join(holes)}, which every step has; {again}")
    return history


def draw_all(history: pd.DataFrame, facts: Mapping[str, Any]) -> dict[str, Figure]:
    """All figures of a training, by file name.

    history: as read_history returns it. facts: contents of metrics/train.json, of which SUMMARY_KEYS are used;
    steps_per_epoch is at least 1, max_norm above 0 or None.
    Raises DataError if one of them is absent.
    """
    if absent := [name for name in SUMMARY_KEYS if name not in facts]:
        raise DataError(f"train.json lacks {', '.join(absent)}; run `dvc repro train` to write it again")
    (lr_decay,), (decay_start,), (first_clipped_step,), (keep,) = (facts[key] for key in SUMMARY_KEYS[3:])
    return {
        "learning_rate": learning_rate(history, facts["warmup_steps"], lr_decay, decay_start),
        "losses": losses(history, facts["steps_per_epoch"], keep),
        "gradients": gradients(history, first_clipped_step, facts["max_norm"]),
    }


def learning_rate(history: pd.DataFrame, warmup_steps: int, lr_decay: str, decay_start: int) -> Figure:
    """`lr` over steps, with its phases named and its peak marked; only a falling rate is labeled "decay".

    lr_decay: as in params.yaml. decay_start: first step of the decay, at least warmup_steps.
    """
    steps, rates = history["step"].to_numpy(), history["lr"].to_numpy()
    last = int(steps[-1])
    with figure_style():
        figure, axes = new_figure()
        set_step_axis(axes, last)
        plot_line(axes, steps, history["lr"], color=BLUE, linewidth=1.6)
        axes.set_ylim(0, 1.18 * rates.max() or 1)
        axes.set_ylabel("learning rate (lr)")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
        if warmup_steps > 0:
            axes.axvspan(-1 - last, warmup_steps, color=SHADE, linewidth=0, zorder=0)
            annotate_above(axes, min(warmup_steps, last) / 2, "warmup")
        if 0 < warmup_steps <= last:
            axes.axvline(warmup_steps, color=GUIDE, linewidth=0.8, linestyle=":")
            annotate_beside(axes, warmup_steps, 0, f"warmup_steps = {warmup_steps}")
        after = rates[steps >= warmup_steps]
        if len(after) > 1:
            falls = bool(after[-1] < after[0])
            decay_start = decay_start if falls else warmup_steps
            annotate_above(axes, (decay_start + last) / 2, DECAYS[lr_decay] if falls else "constant")
            if warmup_steps < decay_start:
                annotate_above(axes, (warmup_steps + decay_start) / 2, "stable")
                axes.axvline(decay_start, color=GUIDE, linewidth=0.8, linestyle=":")
                annotate_beside(axes, decay_start, 0, f"decay from step {decay_start}")
        peak = int(rates.argmax())
        axes.plot(steps[peak], rates[peak], "o", color=BLACK, markersize=4, clip_on=False)
        annotate_beside(axes, steps[peak], rates[peak], f"peak_lr = {rates[peak]:.3g}")
    return figure


def losses(history: pd.DataFrame, steps_per_epoch: int, keep: str) -> Figure:
    """`loss` of every step, `train_loss` and `val_loss` where evaluated, over epochs and tokens_seen.

    keep: as in params.yaml; with `best`, the step whose weights are kept is named.
    A step is drawn at its end: step k at (k + 1) / steps_per_epoch epochs.
    """
    epochs = (history["step"].to_numpy() + 1) / steps_per_epoch
    # A short last batch is dropped, so every step adds the same number of tokens: one factor relates the two axes.
    tokens_per_epoch = float(history["tokens_seen"].iloc[-1] / epochs[-1])
    to_tokens, to_epochs = partial(np.multiply, tokens_per_epoch), partial(np.multiply, 1 / tokens_per_epoch)
    with figure_style():
        figure, axes = new_figure()
        plot_line(axes, epochs, history["loss"], color=SKY, linewidth=0.7, label="loss (every step)")
        evaluation_line(axes, epochs, history["train_loss"], color=BLUE, marker="o")
        evaluation_line(axes, epochs, history["val_loss"], color=VERMILLION, marker="s", mfc="white", linestyle="--")
        axes.set_xlim(0, 1.02 * epochs[-1])
        axes.set_ylim(0, 1.05 * axes.dataLim.ymax or 1)
        if history["val_loss"].notna().any():
            _mark_best_val_loss(axes, epochs, history, ", kept" if keep == "best" else "")
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss (nats per token)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:.6g}"))  # no power of ten in a corner of the figure
        tokens = axes.secondary_xaxis("top", functions=(to_tokens, to_epochs))
        tokens.set_xlabel("tokens_seen")
        tokens.xaxis.set_major_formatter(EngFormatter(sep=""))
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def gradients(history: pd.DataFrame, first_clipped_step: int | None, max_norm: float | None) -> Figure:
    """`grad_norm`, and `max_grad` before and after clipping, on a log axis, which omits values <= 0 and says so.

    `max_grad` is the largest signed entry, so it can be 0 or less. For more than MAX_POINTS steps, the medians of
    bins are drawn, with ranges for the values before clipping. first_clipped_step, max_norm: None if nothing is
    clipped.
    """
    every, last = bin_width(len(history)), int(history["step"].iloc[-1])
    bins = np.arange(len(history)) // every
    steps = history["step"].groupby(bins).median().to_numpy()
    drawn = history.where(history > 0).groupby(bins)
    middle, low, high = drawn.median(), drawn.min(), drawn.max()
    with figure_style():
        figure, axes = new_figure()
        set_step_axis(axes, last)
        axes.set_yscale("log")
        for name, color in (("grad_norm", BLUE), ("max_grad", ORANGE)) if every > 1 else ():
            axes.fill_between(steps, low[name], high[name], color=color, alpha=0.25, linewidth=0)
        plot_line(axes, steps, middle["grad_norm"], color=BLUE, linewidth=0.9)
        plot_line(axes, steps, middle["max_grad"], color=ORANGE, linewidth=2.4)
        plot_line(axes, steps, middle["max_grad_clipped"], color=BLACK, linewidth=0.9, dashes=(3, 1))
        if max_norm is None or first_clipped_step is None:
            annotate_above(axes, last / 2, "not clipped (max_norm: null)")
        else:
            axes.axhline(max_norm, color=BLACK, linewidth=0.9, linestyle="-.", zorder=3)
            beyond: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
            axes.text(1.01, max_norm, f"max_norm\n= {max_norm:g}, for\ngrad_norm", **beyond)
            if first_clipped_step <= last:
                axes.axvline(first_clipped_step, color=GUIDE, linewidth=0.8, linestyle=":")
                annotate_above(axes, first_clipped_step, f"clipping starts: step {first_clipped_step}")
        axes.set_ylabel("gradient" if every == 1 else f"gradient (median and range of {every} steps)")
        if num_hidden := int((history[list(GRADIENTS)] <= 0).any(axis="columns").sum()):
            axes.set_xlabel(f"step\nvalues of 0 or less are not drawn: at {num_hidden} of {len(history)} steps")
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def _mark_best_val_loss(axes: Axes, epochs: np.ndarray, history: pd.DataFrame, remark: str) -> None:
    """Circle the lowest val_loss and label it just above the lines there, so that none is covered."""
    best = int(np.nanargmin(history["val_loss"]))
    x, y = epochs[best], history["val_loss"].iloc[best]
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    half_width = 0.3 * right  # of the text, generously
    middle = min(max(x, half_width), right - half_width)
    first, last = np.searchsorted(epochs, [middle - half_width, middle + half_width])
    drawn = history[["loss", *EVAL_METRICS]].interpolate()  # between evaluations the line passes, too
    height = float(np.nanmax(drawn.iloc[max(0, first - 1) : last + 1])) + 0.07 * top
    axes.set_ylim(0, max(top, height + 0.1 * top))
    axes.plot(x, y, "o", color=BLACK, markersize=8, markerfacecolor="none", clip_on=False)
    text = f"best val_loss = {y:.3f} (step {history['step'].iloc[best]}, epoch {x:.1f}){remark}"
    lead = {"arrowstyle": "-", "linewidth": 0.6, "shrinkB": 4}
    axes.annotate(text, (x, y), (middle, height), ha="center", arrowprops=lead)
