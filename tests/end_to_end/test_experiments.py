"""Experiments in copies of the workspace, on a store that does not exist yet. Tests run in their order."""

import re
import shlex
from pathlib import Path

import pytest

from tests.end_to_end.workspace import STEPS, Workspace, documented, make_workspace, points_drawn
from tools.mlflow_page import MlflowPage
from tools.mlflow_ui import NO_BROWSER, browser_program, browsing, serving

BROWSER = browser_program()
SAMPLES = "src/reprogpt/evaluation/samples.py"


@pytest.fixture(scope="module")
def queued(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two experiments queued, then the workspace's code edited, then run by two workers; no store before.

    The number of drawn samples tells whose code ran: 3 in the installed project, 2 when queued, 1 edited later.
    """
    workspace = make_workspace(tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("cache"), sample_freq=0)
    source = workspace.path / SAMPLES
    source.write_text(source.read_text("utf-8").replace("NUM_DRAWN = 3", "NUM_DRAWN = 2"), "utf-8")
    workspace.commit("two samples")
    workspace.succeed("dvc", "exp", "run", "--queue", "-S", "peak_lr=0.002", "--name", "slower")
    workspace.succeed("dvc", "exp", "run", "--queue", "-S", "peak_lr=0.003", "--name", "faster")
    committed = source.read_text("utf-8")
    source.write_text(committed.replace("NUM_DRAWN = 2", "NUM_DRAWN = 1"), "utf-8")
    assert not workspace.runs()
    workspace.run_queue(num_tasks=2, timeout=400)
    source.write_text(committed, "utf-8")
    return workspace


def drawn_samples(workspace: Workspace, name: str) -> int:
    (run,) = [run for run in workspace.runs() if run.info.run_name == name]
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return (folder / "samples/samples.txt").read_text("utf-8").count("top_k")


def test_two_workers_on_a_fresh_store_make_two_complete_runs(queued: Workspace) -> None:
    runs = {run.info.run_name: run for run in queued.runs()}
    assert set(runs) == {"slower", "faster"}
    for name, rate in (("slower", "0.002"), ("faster", "0.003")):
        run = runs[name]
        assert run.info.status == "FINISHED"
        assert run.data.params["peak_lr"] == rate
        assert len(queued.client().get_metric_history(run.info.run_id, "loss")) == STEPS
        assert {"final_val_loss", "val_accuracy"} <= set(run.data.metrics)
        assert {"plots/losses.png", "samples/samples.txt"} <= queued.artifacts(run)
        assert Path(run.info.artifact_uri.removeprefix("file://")).parent.parent == queued.path / "mlruns"
        assert (queued.model_folder(run) / "checkpoint/model.safetensors").is_file()
        assert queued.model_folder(run).is_relative_to(queued.path / "mlruns")


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_a_browser_lists_both_and_compares_their_charts_and_parameters(queued: Workspace) -> None:
    """As docs/tutorial.md says to: what is compared here is what `mlflow ui` draws, point for point."""
    names = ["slower", "faster"]
    ids = {run.info.run_name: run.info.run_id for run in queued.runs()}
    assert BROWSER is not None
    with serving(queued.path, queued.env) as address, browsing(BROWSER, {"width": 1100, "height": 800}) as page:
        mlflow = MlflowPage(page, address)
        mlflow.open_experiment()
        assert sorted(mlflow.run_names(2)) == sorted(names)
        mlflow.tick(*names)
        mlflow.compare()
        compared = mlflow.compared_runs()
        assert sorted(compared) == sorted(names)
        assert mlflow.differing_parameters() == {
            "peak_lr": [{"slower": "0.002", "faster": "0.003"}[name] for name in compared]
        }
        for metric in ("lr", "max_grad", "loss"):
            mlflow.open_metric(metric)
            drawn = mlflow.charts([metric], names)
            assert {name: len(points) for name, points in drawn[metric].items()} == dict.fromkeys(names, STEPS)
            for name in names:
                stored = queued.client().get_metric_history(ids[name], metric)
                assert drawn[metric][name] == sorted((point.step, point.value) for point in stored)
            mlflow.back_to_comparison()
        mlflow.back_to_runs()
        mlflow.show_charts(["loss"])
        assert sorted(mlflow.group_by("peak_lr")) == ["0.002", "0.003"]  # as docs/deciding.md says to
        mlflow.wait_for_groups(["loss"], 2)


def test_a_queued_experiment_runs_the_code_it_was_queued_with(queued: Workspace) -> None:
    assert drawn_samples(queued, "slower") == 2
    assert drawn_samples(queued, "faster") == 2


def test_an_edit_of_the_workspace_does_not_make_the_copies_dirty(queued: Workspace) -> None:
    assert [run.data.tags["dirty"] for run in queued.runs()] == ["false", "false"]


@pytest.mark.parametrize(
    ("mode", "name"), [pytest.param(["--temp"], "in-a-copy", marks=pytest.mark.slow), ([], "in-place")]
)
def test_other_modes_land_in_the_same_store_under_their_names(queued: Workspace, mode: list[str], name: str) -> None:
    """By force: DVC has this result already, of `slower` in the queue."""
    queued.succeed("dvc", "exp", "run", *mode, "--force", "--name", name, "-S", "peak_lr=0.002")
    run = queued.runs()[-1]
    assert (run.info.run_name, run.info.status) == (name, "FINISHED")
    assert run.data.tags["dvc.experiment"] == name
    assert run.data.tags["dvc.baseline"] == queued.succeed("git", "rev-parse", "HEAD").strip()
    assert "plots/losses.png" in queued.artifacts(run)
    assert (queued.model_folder(run) / "checkpoint/model.safetensors").is_file()


def test_queue_copy_and_workspace_give_the_same_bits(queued: Workspace) -> None:
    runs = {run.info.run_name: run.data.tags["weights.sha256"] for run in queued.runs()}
    assert runs["slower"] == runs["in-place"] == runs.get("in-a-copy", runs["in-place"])
    assert runs["slower"] != runs["faster"]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_pictures_show_the_two_runs_that_are_named_and_no_others(queued: Workspace) -> None:
    """The command itself refuses charts with other lines than theirs."""
    output = queued.succeed("python", "-m", "tools.screenshots", "slower", "faster")
    pictures = [queued.path / "docs/images" / f"mlflow-{name}.png" for name in ("runs", "differences", "charts")]
    for picture in pictures:
        assert picture.relative_to(queued.path).as_posix() in output
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 200_000
    queued.succeed("git", "clean", "-qfd", "docs/images")


def test_both_are_overlaid_in_every_plot(queued: Workspace) -> None:
    shown = queued.run("dvc", "plots", "diff", "slower", "faster", "--json").stdout
    for plot, columns in {
        "loss": {"loss", "train_loss", "val_loss"},
        "lr": {"lr"},
        "gradients": {"max_grad", "max_grad_clipped"},
        "grad_norm": {"grad_norm"},
        "data/metrics/history.csv": {"loss"},
        "data/metrics/evaluations.csv": {"val_loss"},
    }.items():
        points = points_drawn(shown, plot)
        for name in ("slower", "faster"):
            assert {point["column"] for point in points if point["rev"] == name} == columns, plot


def test_a_result_from_the_cache_is_traced_to_the_run_that_made_it(queued: Workspace) -> None:
    """A value put back, and a combination run before: nothing trains, so no run appears."""
    before = queued.runs()
    queued.set_params(peak_lr=0.003)
    assert queued.stages_run(queued.succeed("dvc", "repro")) == []
    queued.commit("result")
    assert queued.stages_run(queued.succeed("dvc", "exp", "run", "--name", "again", "-S", "peak_lr=0.002")) == []
    assert [run.info.run_id for run in queued.runs()] == [run.info.run_id for run in before]
    made = {run.info.run_id for run in before if run.data.params["peak_lr"] == "0.002"}
    for words in ([], ["again"]):
        output = queued.succeed("python", "-m", "reprogpt", "lineage", *words)
        assert set(re.findall(r"^  ([0-9a-f]{32})  FINISHED", output, flags=re.MULTILINE)) == made
        assert set(re.findall(r"^  holds     all 5 +run ([0-9a-f]{32})$", output, flags=re.MULTILINE)) == made
        assert ("none is named again: DVC had this result already" in output) == bool(words)


def test_tables_fit_a_terminal(queued: Workspace) -> None:
    """80 columns for the table of docs/experiments.md, with nothing cut off; digests in no table."""
    command = shlex.split(documented("dvc exp show --only-changed"))
    table = queued.run("env", "COLUMNS=80", *command, "--no-pager").stdout
    assert "…" not in table
    for word in ("workspace", "main", "[again]", "final_val_loss", "peak_lr", "0.002", "0.003"):
        assert word in table
    metrics = queued.run("dvc", "metrics", "diff", "slower", "faster").stdout
    assert {"final_val_loss", "val_perplexity", "best_val_loss"} <= set(metrics.split())
    assert "run_key" not in metrics  # 32 digits, twice
    assert all(len(line) <= 80 for line in table.splitlines())
