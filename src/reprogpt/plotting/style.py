"""How every figure looks, and how it becomes files: style, axes, lines, notes.

Colours are Okabe and Ito's, and every line also differs in dash, marker or darkness, so that a reader without
colour, or a copy in black and white, loses nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reprogpt.files import atomic_path

BLACK, ORANGE, SKY, BLUE, VERMILLION, PURPLE = "#000000", "#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#CC79A7"
SHADE, GUIDE = "#EDEDED", "#595959"
MOST_MARKERS = 40  # more of them on one line run into a band
MOST_POINTS, FEWER_POINTS = 500, 250  # more of them on one jagged line run into a block; and what becomes of them

STYLE: dict[Any, Any] = {
    "figure.figsize": (5.5, 3.2),  # inches
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same letters on every machine
    "font.size": 9,
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


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write <folder>/<name>.png (200 dpi) and .pdf, each whole or not at all.

    One figure gives the same bytes on any day, in any time zone and under any matplotlibrc.
    """
    with figure_style():
        for kind, metadata in METADATA.items():
            with atomic_path(folder / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)


@contextmanager
def figure_style() -> Iterator[None]:
    """matplotlib's own defaults plus STYLE, whatever the user's matplotlibrc says; afterwards theirs again."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def canvas() -> tuple[Figure, Axes]:
    """A figure of the usual size with one frame; in figure_style only, as all below."""
    figure = Figure()
    return figure, figure.add_subplot()


def bin_width(num_steps: int) -> int:
    """Consecutive steps to be drawn as one point: 1 up to MOST_POINTS steps, else as many as leave FEWER_POINTS."""
    return 1 if num_steps <= MOST_POINTS else -(-num_steps // FEWER_POINTS)


def step_axis(axes: Axes, last: int) -> None:
    """Steps 0 to last along the bottom, at whole numbers."""
    room = max(0.5, 0.01 * last)
    axes.set_xlim(-room, last + room)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def line(axes: Axes, x: np.ndarray, y: pd.Series, **looks: Any) -> None:
    """A line named after its column; where a point has no neighbours (NaN), a dot, since a line would not show it."""
    there = y.notna().to_numpy()
    between = np.concatenate([[False], there, [False]])
    alone = np.flatnonzero(there & ~between[:-2] & ~between[2:])
    dots = {"marker": "o", "markevery": alone.tolist()} if len(alone) else {}
    axes.plot(x, y.to_numpy(), **{"label": y.name} | dots | looks)


def evaluations(axes: Axes, epochs: np.ndarray, values: pd.Series, **looks: Any) -> None:
    """The evaluated steps of one loss, named after its column, if there are any."""
    there = values.notna().to_numpy()
    if there.any():
        every = -(-int(there.sum()) // MOST_MARKERS)
        looks |= {"label": values.name, "markevery": every, "clip_on": False, "zorder": 3}
        axes.plot(epochs[there], values.to_numpy()[there], **looks)


def above(axes: Axes, x: float, text: str) -> None:
    """Text above the frame, centred at x."""
    axes.annotate(text, (x, 1), (0, 3), xycoords=axes.get_xaxis_transform(), textcoords="offset points", ha="center")


def beside(axes: Axes, x: float, y: float, text: str) -> None:
    """Text slightly above (x, y), on the side with more room."""
    left, right = axes.get_xlim()
    side, offset = ("left", 6) if x < (left + right) / 2 else ("right", -6)
    axes.annotate(text, (x, y), (offset, 5), textcoords="offset points", ha=side)
