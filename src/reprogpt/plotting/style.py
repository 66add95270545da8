"""The style of all figures, their axes, lines and annotations; saves figures.

Colors are Okabe and Ito's. Lines also differ in dashes, markers or lightness, so that they can be told apart without
color.
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
from matplotlib.font_manager import fontManager
from matplotlib.ticker import MaxNLocator

from reprogpt.files import atomic_path

BLACK, ORANGE, SKY, BLUE, VERMILLION = "#000000", "#E69F00", "#56B4E9", "#0072B2", "#D55E00"
SHADE, GUIDE = "#EDEDED", "#595959"
MAX_MARKERS = 40  # per line; more of them merge into a band
MAX_POINTS = 500  # per jagged line; more of them merge into a block
BINNED_POINTS = 250  # beyond MAX_POINTS, steps are binned into this many points

# Used for characters that DejaVu Sans lacks, if installed: Chinese, Japanese and Korean.
FALLBACK_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans JP", "Noto Sans CJK SC", "Source Han Sans", "IPAexGothic", "IPAGothic"),
    *("TakaoGothic", "VL Gothic", "Hiragino Sans", "Yu Gothic", "MS Gothic", "PingFang SC", "WenQuanYi Zen Hei"),
    *("Microsoft YaHei", "Droid Sans Fallback"),
)

STYLE: dict[Any, Any] = {
    "figure.figsize": (5.5, 3.2),  # inches
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "font.family": ["DejaVu Sans"],  # included in matplotlib, so the same on every machine
    "font.size": 9,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 3,
    "pdf.fonttype": 42,  # TrueType: publishers refuse matplotlib's default, Type 3
}
# None drops an entry. By default these contain matplotlib's version and, in the PDF, the time.
METADATA = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write <folder>/<name>.png (200 dpi) and .pdf, each atomically.

    The same figure gives the same bytes at any time, in any time zone and with any matplotlibrc.
    """
    with figure_style():
        for kind, metadata in METADATA.items():
            with atomic_path(folder / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)


@contextmanager
def figure_style() -> Iterator[None]:
    """Use matplotlib's defaults plus STYLE while the block runs, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | {"font.family": _font_names()})
        yield


def _font_names() -> list[str]:
    installed = {font.name for font in fontManager.ttflist}
    return [*STYLE["font.family"], *(name for name in FALLBACK_FONTS if name in installed)]


def new_figure() -> tuple[Figure, Axes]:
    """A figure of the usual size with one axes. Call this and all functions below within figure_style."""
    figure = Figure()
    return figure, figure.add_subplot()


def bin_width(num_steps: int) -> int:
    """Steps per drawn point: 1 up to MAX_POINTS steps, otherwise enough for at most BINNED_POINTS points."""
    return 1 if num_steps <= MAX_POINTS else -(-num_steps // BINNED_POINTS)


def set_step_axis(axes: Axes, last: int) -> None:
    """Set the x axis to steps 0 to last, with ticks at whole numbers."""
    room = max(0.5, 0.01 * last)
    axes.set_xlim(-room, last + room)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def plot_line(axes: Axes, x: np.ndarray, y: pd.Series, **style: Any) -> None:
    """Plot a line labeled with its column's name; a point between NaNs is a dot, as a line would not show it."""
    is_value = y.notna().to_numpy()
    padded = np.concatenate([[False], is_value, [False]])
    isolated = np.flatnonzero(is_value & ~padded[:-2] & ~padded[2:])
    dots = {"marker": "o", "markevery": isolated.tolist()} if len(isolated) else {}
    axes.plot(x, y.to_numpy(), **{"label": y.name} | dots | style)


def evaluation_line(axes: Axes, epochs: np.ndarray, values: pd.Series, **style: Any) -> None:
    """Plot the evaluated steps of one loss, if there are any, labeled with its column's name."""
    is_value = values.notna().to_numpy()
    if is_value.any():
        every = -(-int(is_value.sum()) // MAX_MARKERS)
        style |= {"label": values.name, "markevery": every, "clip_on": False, "zorder": 3}
        axes.plot(epochs[is_value], values.to_numpy()[is_value], **style)


def annotate_above(axes: Axes, x: float, text: str) -> None:
    """Text above the frame, centered at x."""
    axes.annotate(text, (x, 1), (0, 3), xycoords=axes.get_xaxis_transform(), textcoords="offset points", ha="center")


def annotate_beside(axes: Axes, x: float, y: float, text: str) -> None:
    """Text slightly above (x, y), on the side with more room."""
    left, right = axes.get_xlim()
    side, offset = ("left", 6) if x < (left + right) / 2 else ("right", -6)
    axes.annotate(text, (x, y), (offset, 5), textcoords="offset points", ha=side)
