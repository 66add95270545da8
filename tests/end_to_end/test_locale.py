"""The pipeline on a Japanese text, in a folder with letters of its own, under a locale that has none of them."""

import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.workspace import make_workspace
from tests.locales import locale_env

FOLDER = "山田's 研究　資料 (コピー) pc%20t"  # %20 is three characters, not a space
SENTENCES = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"


@pytest.mark.slow  # CI runs it by name
def test_the_pipeline_runs_in_any_folder_under_any_locale_without_a_home(tmp_path: Path) -> None:
    workspace = make_workspace(
        tmp_path / FOLDER, tmp_path / "キャッシュ", n_epochs=1, context_length=32, stride=32, start_context="吾輩は"
    )
    (tmp_path / "キャッシュ/corpus.txt").write_text(SENTENCES * 60, "utf-8")
    workspace.env |= locale_env(tmp_path, "en_US", "ISO-8859-1") | {"HOME": "/proc/none"}
    del workspace.env["REPROGPT_CACHE"]

    done = subprocess.run(
        ["dvc", "repro"], cwd=workspace.path, env=workspace.env, capture_output=True, timeout=200, check=False
    )
    printed = (done.stdout + done.stderr).decode("latin-1")
    assert done.returncode == 0 and "Traceback" not in printed, printed
    assert workspace.stages_run(printed) == ["fetch", "split", "tokenize", "train", "evaluate", "plot"]
    assert "can't be used" not in printed and "are not in MLflow" not in printed, printed
    assert "matplotlib" not in printed.lower() and "glyph" not in printed.lower(), printed

    (run,) = workspace.runs()
    assert run.info.status == "FINISHED" and "val_perplexity" in run.data.metrics
    assert {"samples/samples.txt", "plots/losses.png"} <= workspace.artifacts(run)
    assert run.data.params["start_context"] == "吾輩は"
    assert "吾輩は" in (workspace.path / "data/samples.txt").read_text("utf-8")
    assert {path.name for path in tmp_path.iterdir()} - {"en_US.ISO-8859-1"} == {FOLDER, "キャッシュ"}
