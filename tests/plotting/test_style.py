"""Histories come in to the last bit, pictures go out whole and as the same bytes everywhere."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import reprogpt
from reprogpt.errors import DataError
from reprogpt.plotting.style import save_figure
from reprogpt.plotting.training_figures import draw_all, learning_rate, losses, read_history
from tests.plotting.histories import FILES, KINDS, training

pytestmark = pytest.mark.filterwarnings("error")

PLOT = """
import sys
from pathlib import Path
from reprogpt.plotting.style import save_figure
from reprogpt.plotting.training_figures import draw_all, read_history
facts = {"warmup_steps": 4, "steps_per_epoch": 5, "max_norm": 1.0}
for name, figure in draw_all(read_history(Path(sys.argv[1])), facts).items():
    save_figure(figure, Path(sys.argv[2]), name)
assert "matplotlib.pyplot" not in sys.modules, "pyplot picks a screen backend and keeps figures alive"
"""
BLACK_STYLE = "figure.facecolor: black\nsavefig.facecolor: black\nfont.family: monospace\nlines.linewidth: 9\n"


def pictures(history: Path, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    clean = {name: value for name, value in os.environ.items() if name not in ("SOURCE_DATE_EPOCH", "MPLCONFIGDIR")}
    clean["PYTHONPATH"] = str(Path(reprogpt.__file__).parents[1])
    return subprocess.Popen([sys.executable, "-c", PLOT, str(history), str(folder)], env=clean | environment)


def test_pictures_are_the_same_bytes_in_any_process_time_zone_and_matplotlibrc(tmp_path: Path) -> None:
    training(20, warmup_steps=4).to_csv(tmp_path / "history.csv", index=False)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "matplotlibrc").write_text(BLACK_STYLE, "utf-8")
    runs = {
        "tokyo": {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "1"},
        "new_york": {"TZ": "America/New_York", "PYTHONHASHSEED": "2"},
        "black": {"MPLCONFIGDIR": str(tmp_path / "user")},
    }
    started = [pictures(tmp_path / "history.csv", tmp_path / run, **extra) for run, extra in runs.items()]
    assert [process.wait() for process in started] == [0, 0, 0]
    for name in FILES:
        contents = {run: (tmp_path / run / name).read_bytes() for run in runs}
        assert [run for run in runs if contents[run] != contents["tokyo"]] == [], name


def test_pictures_tell_no_date_and_no_version(tmp_path: Path) -> None:
    save_figure(learning_rate(training(20, warmup_steps=4), 4), tmp_path, "learning_rate")
    for kind in KINDS:
        content = (tmp_path / f"learning_rate.{kind}").read_bytes()
        assert not [word for word in (b"Date", b"Software", b"Producer", b"atplotlib") if word in content]


def test_the_user_s_matplotlib_settings_are_theirs_again_afterwards(tmp_path: Path) -> None:
    with matplotlib.rc_context({"lines.linewidth": 7, "figure.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        save_figure(learning_rate(training(2, warmup_steps=0), 0), tmp_path, "learning_rate")
        assert dict(matplotlib.rcParams) == before


def test_a_failure_while_writing_leaves_the_older_picture_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Figure, path: Path, **options: Any) -> None:
        path.write_bytes(b"half of a pict")
        raise OSError("No space left on device")

    (tmp_path / "losses.png").write_bytes(b"older")
    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="No space left"):
        save_figure(losses(training(2, warmup_steps=0), 5), tmp_path, "losses")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"losses.png": b"older"}


def test_a_history_is_read_to_the_last_bit(tmp_path: Path) -> None:
    written = training(20, warmup_steps=4).assign(loss=np.random.default_rng(0).uniform(0, 11, 20))
    written.to_csv(tmp_path / "history.csv", index=False)
    pd.testing.assert_frame_equal(read_history(tmp_path / "history.csv"), written, check_exact=True)


def test_evaluation_columns_may_be_empty_altogether(tmp_path: Path) -> None:
    training(3, warmup_steps=0, eval_freq=0).to_csv(tmp_path / "history.csv", index=False)
    assert read_history(tmp_path / "history.csv")["val_loss"].dtype == np.float64


HEADER = ",".join(training(1, warmup_steps=0).columns)


@pytest.mark.parametrize(
    ("content", "said"),
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
def test_a_history_that_is_not_one_is_refused_by_name(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "history.csv").write_text(content, "utf-8")
    with pytest.raises(DataError, match=rf"history\.csv .*{said}.*dvc repro"):
        read_history(tmp_path / "history.csv")


def test_a_fact_that_is_absent_is_named() -> None:
    with pytest.raises(DataError, match="lacks steps_per_epoch, max_norm;"):
        draw_all(training(2, warmup_steps=0), {"warmup_steps": 0})
