"""reprogpt overlay on a real store with tiny trainings: which runs, which labels, which files."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric, Param

from reprogpt.cli.main import run
from reprogpt.cli.overlay import MAX_LABEL, _cut, _drawable, _file_names, corpus_remark, labels, num_cells
from reprogpt.errors import PipelineError
from reprogpt.plotting import style
from reprogpt.tracking.runs import TrackedRun
from reprogpt.tracking.store import open_store
from reprogpt.training.loop import train
from tests.tiny import PARAMS, tiny_training

ROOT = Path(__file__).resolve().parents[2]
KEY = "k" * 32
NAMES = ("losses", "learning_rate", "gradients")
Overlay = Callable[..., str]


def record(name: str, num_steps: int = 10, status: str = "FINISHED", text: str = "a", **changes: Any) -> str:
    """A training of 10 steps, its first num_steps as train records them; the run's id."""
    client, experiment = open_store()
    created = client.create_run(experiment, run_name=name, tags={"corpus.sha256": text, "run_key": f"{KEY[1:]}{name}"})
    run_id: str = created.info.run_id
    points = [
        Metric(key, value, 0, step.step)
        for step in list(train(tiny_training(**changes)))[:num_steps]
        for key, value in dataclasses.asdict(step).items()
        if key not in ("step", "epoch", "sample") and value is not None
    ]
    client.log_batch(run_id, points, [Param(key, str(value)) for key, value in (PARAMS | changes).items()])
    if status != "RUNNING":
        client.set_terminated(run_id, status)
    return run_id


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository's root with runs, a DVC experiment that was taken from the cache, and its workspace."""
    folder = tmp_path_factory.mktemp("root")
    for name in ("params.yaml", "dvc.yaml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    summary = folder / "data/metrics/train.json"
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"run_key": f"{KEY[1:]}slow"}), "utf-8")
    identity = ("-c", "user.name=t", "-c", "user.email=t@t.invalid")
    for command in (
        ("init", "-q"),
        ("add", "--all"),
        (*identity, "commit", "-qm", "slow"),
        ("update-ref", f"refs/exps/aa/{'b' * 38}/taken", "HEAD"),
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        slow = record("slow", peak_lr=0.0005)
        record("fast", status="FAILED", num_steps=7, peak_lr=0.01)
        record("twin", text="b", eval_freq=0)
        record("twin", status="RUNNING", num_steps=1)  # newer than the first of its name
        record("unclipped", max_norm=None)
        record("empty", status="RUNNING", num_steps=0)
        client, experiment = open_store()
        client.create_run(experiment, run_name="evaluated", tags={"mlflow.parentRunId": slow})
    return folder


@pytest.fixture
def overlay(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Overlay:
    """Run `reprogpt overlay ...` in the folder: what it prints."""
    monkeypatch.chdir(root)

    def act(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["reprogpt", "overlay", *words])
        assert run() == 0
        return capsys.readouterr().out

    return act


def test_the_files_are_ignored_by_git_and_the_output_is_the_same_in_another_process(
    root: Path, overlay: Overlay
) -> None:
    twin = ids_of("twin")[0]
    words = ("slow", "fast", twin)
    printed = overlay(*words)
    files = [f"overlays/slow-fast-twin/{name}.{kind}" for name in NAMES for kind in ("png", "pdf")]
    assert printed.splitlines()[-6:] == files
    drawn = sorted(path.relative_to(root).as_posix() for path in (root / "overlays").rglob("*.*"))
    assert drawn == sorted(files)
    for line in (
        "slow  FINISHED  10 steps, best val_loss ",
        "\n   peak_lr=0.0005, eval_freq=5\n",
        "fast  FAILED  7 steps, best val_loss ",
        "twin  FINISHED  10 steps, no val_loss\n",
        "\ntrained on different texts: the losses are not comparable\n",
    ):
        assert line in printed
    status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    assert "overlays" not in status.stdout
    first = {name: (root / name).read_bytes() for name in files}
    environment = os.environ | {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "reprogpt", "overlay", *words]
    again = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, printed), again.stderr
    assert [name for name in files if (root / name).read_bytes() != first[name]] == []


def test_a_run_without_max_norm_is_drawn(overlay: Overlay) -> None:
    assert "max_norm=1.0" in (printed := overlay("slow", "unclipped")) and "max_norm=None" in printed


def ids_of(name: str) -> list[str]:
    client, experiment = open_store()
    found = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
    return [recorded.info.run_id for recorded in found if recorded.info.run_name == name]


@pytest.mark.parametrize("word", ["evaluated", "taken", "HEAD", "."])
def test_an_evaluation_an_experiment_from_the_cache_a_commit_and_the_workspace_stand_for_their_training(
    overlay: Overlay, word: str
) -> None:
    with pytest.raises(PipelineError, match=f"^{word} and slow are the same run$"):
        overlay(word, "slow")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("slow", "unknown"), "unknown is no MLflow run .*no DVC experiment and no git(.|\n)*Experiments: taken"),
        (("slow", "empty"), "empty, RUNNING, has no steps yet: leave it out"),
        (("slow", "fast", "slow"), "^slow and slow are the same run$"),
        (tuple("abcdefg"), "7 runs are too many for one figure: more than 6 lines can't be told apart"),
    ],
)
def test_what_can_not_be_drawn_is_refused(overlay: Overlay, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        overlay(*words)


def test_a_revision_without_a_run_and_one_without_a_result_are_refused(root: Path, overlay: Overlay) -> None:
    summary = root / "data/metrics/train.json"
    kept = summary.read_text("utf-8")
    summary.write_text('{"run_key": "elsewhere"}', "utf-8")
    with pytest.raises(PipelineError, match=r"no MLflow run trained what the workspace holds \(run_key elsewhere\)"):
        overlay(".", "fast")
    summary.unlink()
    with pytest.raises(PipelineError, match=r"the workspace has no run_key in data/metrics/train\.json.*`dvc repro`"):
        overlay(".", "fast")
    summary.write_text(kept, "utf-8")


def test_a_folder_that_can_not_be_written_is_refused(root: Path, overlay: Overlay) -> None:
    (root / "overlays").mkdir(exist_ok=True)
    (root / "overlays/fast-slow").write_text("a file", "utf-8")
    with pytest.raises(PipelineError, match=r"^overlays/fast-slow can't be written: .*xists"):
        overlay("fast", "slow")


def test_files_are_named_after_runs_in_letters_that_every_file_system_takes() -> None:
    runs = [a_run("a/b: c"), a_run("..", start="d"), a_run("a b c", start="e"), a_run("n" * 99)]
    assert _file_names(runs) == ["a0000000", "d0000000", "e0000000", "n" * 30]


def a_run(name: str = "a", status: str = "FINISHED", start: str = "a", **params: str) -> TrackedRun:
    return TrackedRun(id=start.ljust(32, "0"), name=name, status=status, params=params)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([a_run("a", peak_lr="1", seed="2"), a_run("b", peak_lr="3", seed="2")], ["a: peak_lr=1", "b: peak_lr=3"]),
        ([a_run("a", top_k="1"), a_run("b", top_k="2", status="FAILED")], ["a", "b [FAILED]"]),
        ([a_run("a", start="c"), a_run("a", start="d")], ["a c0000000", "a d0000000"]),
        ([a_run("a", seed="1"), a_run("b")], ["a: seed=1", "b: seed=absent"]),
        ([a_run("a", init_from=""), a_run("b", init_from="x" * 30)], ['a: init_from=""', f"b: init_from={'x' * 19}…"]),
        ([a_run("n" * 31), a_run("b")], ["n" * 29 + "…", "b"]),
    ],
)
def test_a_label_names_the_run_and_what_of_train_differs(runs: list[TrackedRun], expected: list[str]) -> None:
    assert labels(runs) == expected


def test_a_label_is_as_long_as_fits_and_counts_what_it_leaves_out() -> None:
    many = {key: "1" * 12 for key in ("seed", "stride", "n_epochs", "peak_lr", "min_lr")}
    first, second = labels([a_run("n" * 30, status="RUNNING", **many), a_run("b" * 10)])
    assert first == f"{'n' * 30} [RUNNING]: +5 more" and len(first) <= MAX_LABEL
    # A third would fit, but not with the number of those that then still lack.
    assert second == f"{'b' * 10}: seed=absent, stride=absent, +3 more" and len(second) <= MAX_LABEL


def test_names_of_wide_characters_are_cut_by_cells_and_files_by_bytes() -> None:
    assert _cut("吾輩は猫である", 8) == "吾輩は…" and _cut("吾輩は猫", 8) == "吾輩は猫"
    runs = [TrackedRun(f"{n}" * 32, "吾輩は猫である。" * 20 + str(n), "FINISHED", {}, {}, {}, {}) for n in range(6)]
    names = _file_names(runs)
    assert len("-".join(names).encode()) < 250 and len(set(names)) == 6
    assert all(num_cells(label) <= MAX_LABEL for label in labels(runs))


def test_a_name_that_no_font_has_is_drawn_as_the_runs_id(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(style, "FALLBACK_FONTS", ())
    runs = [
        TrackedRun("a" * 32, "吾輩", "FINISHED", {}, {}, {}, {}),
        TrackedRun("b" * 32, "été", "FINISHED", {}, {}, {}, {}),
    ]
    assert _drawable(["吾輩", "été"], runs) == ["aaaaaaaa", "été"]
    assert capsys.readouterr().err.count("fonts-noto-cjk") == 1


def test_other_tokens_of_the_same_text_do_not_compare_either() -> None:
    def of(digest: str) -> TrackedRun:
        return TrackedRun("a", "a", "FINISHED", tags={"corpus.sha256": "t"}, datasets={"data/tokens/val.npy": digest})

    assert corpus_remark([of("1"), of("1"), a_run()]) == ""
    assert corpus_remark([of("1"), of("2")]) == "trained on different tokens: the losses are not comparable"
