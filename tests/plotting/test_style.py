"""Figures are written atomically, as the same bytes everywhere."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.figure import Figure

import reprogpt
from reprogpt.plotting import style
from reprogpt.plotting.style import save_figure
from reprogpt.plotting.training_figures import learning_rate, losses
from tests.plotting.histories import FILES, KINDS, training

pytestmark = pytest.mark.filterwarnings("error")

PLOT = """
import sys
from pathlib import Path
from reprogpt.plotting.style import save_figure
from reprogpt.plotting.training_figures import draw_all, read_history
facts = {"warmup_steps": 4, "steps_per_epoch": 5, "max_norm": 1.0}
facts |= {"lr_decay": ["cosine"], "decay_start": [4], "first_clipped_step": [4], "keep": ["last"]}
for name, figure in draw_all(read_history(Path(sys.argv[1])), facts).items():
    save_figure(figure, Path(sys.argv[2]), name)
assert "matplotlib.pyplot" not in sys.modules, "pyplot picks a screen backend and keeps figures alive"
"""
BLACK_STYLE = "figure.facecolor: black\nsavefig.facecolor: black\nfont.family: monospace\nlines.linewidth: 9\n"


def draw_figures(history: Path, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    clean = {name: value for name, value in os.environ.items() if name not in ("SOURCE_DATE_EPOCH", "MPLCONFIGDIR")}
    clean["PYTHONPATH"] = str(Path(reprogpt.__file__).parents[1])
    return subprocess.Popen([sys.executable, "-c", PLOT, str(history), str(folder)], env=clean | environment)


def test_figures_are_the_same_bytes_in_any_process_time_zone_and_matplotlibrc(tmp_path: Path) -> None:
    training(20, warmup_steps=4).to_csv(tmp_path / "history.csv", index=False)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "matplotlibrc").write_text(BLACK_STYLE, "utf-8")
    runs = {
        "tokyo": {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "1"},
        "new_york": {"TZ": "America/New_York", "PYTHONHASHSEED": "2"},
        "black": {"MPLCONFIGDIR": str(tmp_path / "user")},
    }
    started = [draw_figures(tmp_path / "history.csv", tmp_path / run, **extra) for run, extra in runs.items()]
    assert [process.wait() for process in started] == [0, 0, 0]
    for name in FILES:
        contents = {run: (tmp_path / run / name).read_bytes() for run in runs}
        assert [run for run in runs if contents[run] != contents["tokyo"]] == [], name


def test_figures_hold_no_date_and_no_version(tmp_path: Path) -> None:
    save_figure(learning_rate(training(20, warmup_steps=4), 4, "cosine", 4), tmp_path, "learning_rate")
    for kind in KINDS:
        content = (tmp_path / f"learning_rate.{kind}").read_bytes()
        assert not [word for word in (b"Date", b"Software", b"Producer", b"atplotlib") if word in content]


def test_the_user_s_matplotlib_settings_are_theirs_again_afterwards(tmp_path: Path) -> None:
    with matplotlib.rc_context({"lines.linewidth": 7, "figure.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        save_figure(learning_rate(training(2, warmup_steps=0), 0, "cosine", 0), tmp_path, "learning_rate")
        assert dict(matplotlib.rcParams) == before


def test_a_failure_while_writing_leaves_the_older_figure_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Figure, path: Path, **options: Any) -> None:
        path.write_bytes(b"half of a fig")
        raise OSError("No space left on device")

    (tmp_path / "losses.png").write_bytes(b"older")
    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="No space left"):
        save_figure(losses(training(2, warmup_steps=0), 5, "last"), tmp_path, "losses")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"losses.png": b"older"}


def test_an_installed_font_draws_what_the_usual_one_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One of matplotlib's own stands for a Japanese font here. Other texts keep their bytes."""
    private = chr(0xE000)

    def drawn(title: str) -> list[bytes]:
        with style.figure_style():
            figure, axes = style.new_figure()
            axes.set_title(title)
        save_figure(figure, tmp_path, "figure")  # a missing glyph would be a warning, which is an error here
        return [(tmp_path / f"figure.{kind}").read_bytes() for kind in style.METADATA]

    monkeypatch.setattr(style, "FALLBACK_FONTS", ("no such font",))
    before = drawn("loss é …")
    with pytest.raises(UserWarning, match="missing from font"):
        drawn(private)
    monkeypatch.setattr(style, "FALLBACK_FONTS", ("no such font", "STIXNonUnicode"))
    assert drawn("loss é …") == before
    drawn(private)
