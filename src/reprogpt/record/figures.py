"""What a training history looks like on paper: learning rate, losses, gradients.

The only file that imports matplotlib. Colours are Okabe and Ito's, and every line also differs in
dash, marker or darkness, so that a reader without colour, or a copy in black and white, loses nothing.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

from reprogpt.errors import DataError
from reprogpt.files import atomic_path

COUNTS = ("step", "epoch", "tokens_seen")
MEASURED = ("lr", "loss", "max_grad", "max_grad_clipped", "grad_norm")
EVALUATED = ("train_loss", "val_loss")
FACTS = ("warmup_steps", "steps_per_epoch", "max_norm")

BLACK, ORANGE, SKY, BLUE, VERMILLION = "#000000", "#E69F00", "#56B4E9", "#0072B2", "#D55E00"
SHADE, GUIDE = "#EDEDED", "#595959"
MOST_MARKERS = 40  # more of them on one line run into a band

STYLE: dict[Any, Any] = {
    "figure.figsize": (5.5, 3.2),  # inches
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same letters on every machine
    "font.size": 8,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 3,
    "pdf.fonttype": 42,  # publishers refuse matplotlib's default, Type 3
}
# None drops an entry. By default these hold matplotlib's version and, in the PDF, the time of day.
METADATA = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}


def read_history(path: Path) -> pd.DataFrame:
    """The rows of history.csv, one per step: counts as int64, the rest float64 to the last bit.

    train_loss and val_loss are NaN where a step was not evaluated; no other value is missing.
    Raises DataError, naming the file, if it can't be read, lacks a column or a value, or has no rows.
    """
    dtypes = dict.fromkeys(COUNTS, "int64") | dict.fromkeys(MEASURED + EVALUATED, "float64")
    again = "run `dvc repro train` to write it again"
    try:
        # Read here, not by pandas: its parser turns a Ctrl-C during the read into an error of its own.
        text = io.StringIO(path.read_text("utf-8"))
        cells = pd.read_csv(text, dtype=str)  # pandas before 3.1 rounds floats; Python, which astype asks, does not
        if absent := [name for name in dtypes if name not in cells.columns]:
            raise DataError(f"{path} lacks the columns {', '.join(absent)}; {again}")
        history = cells.astype(dtypes)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as a training history: {error}; {again}") from error
    if history.empty:
        raise DataError(f"{path} has no rows, at least 1 step is needed; {again}")
    if holes := [name for name in MEASURED if history[name].isna().any()]:
        raise DataError(f"{path} lacks values of {', '.join(holes)}, which every step has; {again}")
    return history


def draw_all(history: pd.DataFrame, facts: Mapping[str, Any]) -> dict[str, Figure]:
    """Every figure of a training, by the name it is saved under.

    history: as read_history returns it. facts: what metrics/train.json holds; only warmup_steps,
    steps_per_epoch (at least 1) and max_norm (above 0) are used.
    Raises DataError if one of the three is absent.
    """
    if absent := [name for name in FACTS if name not in facts]:
        raise DataError(f"train.json lacks {', '.join(absent)}; run `dvc repro train` to write it again")
    return {
        "learning_rate": learning_rate(history, facts["warmup_steps"]),
        "losses": losses(history, facts["steps_per_epoch"]),
        "gradients": gradients(history, facts["warmup_steps"], facts["max_norm"]),
    }


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write <folder>/<name>.png (200 dpi) and .pdf, each whole or not at all.

    One figure gives the same bytes on any day, in any time zone and under any matplotlibrc.
    """
    with _house_style():
        for kind, metadata in METADATA.items():
            with atomic_path(folder / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)


def learning_rate(history: pd.DataFrame, warmup_steps: int) -> Figure:
    """`lr` over steps, its phases named and its peak marked; "decay" is claimed only of a rate that falls."""
    steps, rates = history["step"].to_numpy(), history["lr"].to_numpy()
    last = int(steps[-1])
    with _house_style():
        figure, axes = _canvas()
        _step_axis(axes, last)
        _line(axes, steps, history["lr"], color=BLUE, linewidth=1.6)
        axes.set_ylim(0, 1.18 * rates.max() or 1)
        axes.set_ylabel("learning rate (lr)")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
        if warmup_steps > 0:
            axes.axvspan(-1 - last, warmup_steps, color=SHADE, linewidth=0, zorder=0)
            _above(axes, min(warmup_steps, last) / 2, "warmup")
        if 0 < warmup_steps <= last:
            axes.axvline(warmup_steps, color=GUIDE, linewidth=0.8, linestyle=":")
            _beside(axes, warmup_steps, 0, f"warmup_steps = {warmup_steps}")
        after = rates[steps >= warmup_steps]
        if len(after) > 1:
            _above(axes, (warmup_steps + last) / 2, "cosine decay" if after[-1] < after[0] else "constant")
        peak = int(rates.argmax())
        axes.plot(steps[peak], rates[peak], "o", color=BLACK, markersize=4, clip_on=False)
        _beside(axes, steps[peak], rates[peak], f"peak_lr = {rates[peak]:.3g}")
    return figure


def losses(history: pd.DataFrame, steps_per_epoch: int) -> Figure:
    """`loss` of every step, `train_loss` and `val_loss` where evaluated, over epochs and tokens_seen.

    A step is drawn where it ends: step k at (k + 1) / steps_per_epoch epochs.
    """
    epochs = (history["step"].to_numpy() + 1) / steps_per_epoch
    # A short last batch is dropped: every step adds equally many tokens, so one factor joins the two axes.
    tokens_per_epoch = float(history["tokens_seen"].iloc[-1] / epochs[-1])
    to_tokens, to_epochs = partial(np.multiply, tokens_per_epoch), partial(np.multiply, 1 / tokens_per_epoch)
    with _house_style():
        figure, axes = _canvas()
        _line(axes, epochs, history["loss"], color=SKY, linewidth=0.7, label="loss (every step)")
        _evaluations(axes, epochs, history["train_loss"], color=BLUE, marker="o")
        _evaluations(axes, epochs, history["val_loss"], color=VERMILLION, marker="s", mfc="white", linestyle="--")
        axes.set_xlim(0, 1.02 * epochs[-1])
        axes.set_ylim(0, 1.05 * axes.dataLim.ymax or 1)
        if history["val_loss"].notna().any():
            _point_out_best(axes, epochs, history)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss (nats per token)")
        above = axes.secondary_xaxis("top", functions=(to_tokens, to_epochs))
        above.set_xlabel("tokens_seen")
        above.xaxis.set_major_formatter(EngFormatter(sep=""))
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def gradients(history: pd.DataFrame, warmup_steps: int, max_norm: float) -> Figure:
    """`grad_norm`, and `max_grad` before and after clipping, on a log axis that leaves out values <= 0.

    `max_grad` is the largest signed entry, so it can be 0 or less.
    """
    steps, drawn = history["step"].to_numpy(), history.where(history > 0)
    with _house_style():
        figure, axes = _canvas()
        _step_axis(axes, int(steps[-1]))
        axes.set_yscale("log")
        _line(axes, steps, drawn["grad_norm"], color=BLUE, linewidth=0.9)
        _line(axes, steps, drawn["max_grad"], color=ORANGE, linewidth=2.4)
        _line(axes, steps, drawn["max_grad_clipped"], color=BLACK, linewidth=0.9, dashes=(3, 1))
        axes.axhline(max_norm, color=BLUE, linewidth=0.9, linestyle="-.", zorder=3)
        note: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "color": BLUE}
        axes.text(1.01, max_norm, f"max_norm\n= {max_norm:g}, for\ngrad_norm", **note)
        start = _first_clipped_step(history, warmup_steps, max_norm)
        if start <= steps[-1]:
            axes.axvline(start, color=GUIDE, linewidth=0.8, linestyle=":")
            _above(axes, start, f"clipping starts: step {start}")
        axes.set_ylabel("gradient")
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def _first_clipped_step(history: pd.DataFrame, warmup_steps: int, max_norm: float) -> int:
    """warmup_steps, or one more where that step's gradient was too long and left so (orig_book_version)."""
    first = history[history["step"] == warmup_steps]
    left = (first["grad_norm"] > max_norm) & (first["max_grad"] == first["max_grad_clipped"])
    return warmup_steps + int(left.any())


def _point_out_best(axes: Axes, epochs: np.ndarray, history: pd.DataFrame) -> None:
    """Ring the lowest val_loss and name it just above whatever is drawn there, so that no line is covered."""
    best = int(np.nanargmin(history["val_loss"]))
    x, y = epochs[best], history["val_loss"].iloc[best]
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    half_width = 0.27 * right  # half of the text, generously
    middle = min(max(x, half_width), right - half_width)
    first, last = np.searchsorted(epochs, [middle - half_width, middle + half_width])
    drawn = history[["loss", *EVALUATED]].interpolate()  # a line also passes between its evaluations
    height = float(np.nanmax(drawn.iloc[max(0, first - 1) : last + 1])) + 0.07 * top
    axes.set_ylim(0, max(top, height + 0.1 * top))
    axes.plot(x, y, "o", color=BLACK, markersize=8, markerfacecolor="none", clip_on=False)
    text = f"best val_loss = {y:.3f} (step {history['step'].iloc[best]}, epoch {x:.1f})"
    lead = {"arrowstyle": "-", "linewidth": 0.6, "shrinkB": 4}
    axes.annotate(text, (x, y), (middle, height), ha="center", arrowprops=lead)


@contextmanager
def _house_style() -> Iterator[None]:
    """matplotlib's own defaults plus STYLE, whatever the user's matplotlibrc says; afterwards theirs again."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _canvas() -> tuple[Figure, Axes]:
    figure = Figure()
    return figure, figure.add_subplot()


def _step_axis(axes: Axes, last: int) -> None:
    room = max(0.5, 0.01 * last)
    axes.set_xlim(-room, last + room)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def _line(axes: Axes, x: np.ndarray, y: pd.Series, **looks: Any) -> None:
    """A line named after its column, or a dot where there is one point only, which a line would not show."""
    axes.plot(x, y.to_numpy(), **{"label": y.name, "marker": "o" if len(x) == 1 else ""} | looks)


def _evaluations(axes: Axes, epochs: np.ndarray, values: pd.Series, **looks: Any) -> None:
    """The evaluated steps of one loss, named after its column, if there are any."""
    there = values.notna().to_numpy()
    if there.any():
        every = -(-int(there.sum()) // MOST_MARKERS)
        looks |= {"label": values.name, "markevery": every, "clip_on": False, "zorder": 3}
        axes.plot(epochs[there], values.to_numpy()[there], **looks)


def _above(axes: Axes, x: float, text: str) -> None:
    axes.annotate(text, (x, 1), (0, 3), xycoords=axes.get_xaxis_transform(), textcoords="offset points", ha="center")


def _beside(axes: Axes, x: float, y: float, text: str) -> None:
    """Text slightly above (x, y), on the side with more room."""
    left, right = axes.get_xlim()
    side, offset = ("left", 6) if x < (left + right) / 2 else ("right", -6)
    axes.annotate(text, (x, y), (offset, 5), textcoords="offset points", ha=side)
