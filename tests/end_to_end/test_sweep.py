"""The sweep of docs/experiments.md: six experiments queued, run for real, and seen in both tools."""

import itertools
import re
import shlex

import pytest

from tests.end_to_end.workspace import DOCS, Workspace, documented, make_workspace

# Two minutes, ten on a busy machine; test_experiments.py runs two from a queue.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

GRID = set(itertools.product(("0.0003", "0.001", "0.003"), ("0.1", "0.2")))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone with a result that none of the six repeats, after the two commands of README.md."""
    made = make_workspace(tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("cache"), peak_lr=0.0005)
    made.succeed("dvc", "repro")
    made.commit("result")
    made.succeed(*shlex.split(documented("dvc exp run --queue -S 'peak_lr=0.0003")))
    made.run_queue(num_tasks=len(GRID), timeout=900)
    return made


def test_each_combination_is_one_run_named_after_its_experiment(swept: Workspace) -> None:
    runs = swept.runs()
    assert len(runs) == len(GRID) + 1
    runs = [run for run in runs if "dvc.experiment" in run.data.tags]
    assert {(run.data.params["peak_lr"], run.data.params["warmup_ratio"]) for run in runs} == GRID
    names = set(swept.succeed("dvc", "exp", "list", "--name-only").split())
    assert {run.info.run_name for run in runs} == {run.data.tags["dvc.experiment"] for run in runs} == names
    head = swept.succeed("git", "rev-parse", "HEAD").strip()
    for run in runs:
        assert (run.info.status, run.data.tags["dvc.baseline"]) == ("FINISHED", head)
        assert "final_val_loss" in run.data.metrics


def test_the_table_has_all_of_them_the_best_first(swept: Workspace) -> None:
    command = shlex.split(documented("dvc exp show --only-changed"))
    table = swept.run("env", "COLUMNS=80", *command, "--no-pager").stdout
    assert "…" not in table and all(len(line) <= 80 for line in table.splitlines())
    rows = re.findall(r"(?m)^ +[├└]── \w{7} \[([\w-]+)\] +([\d.]+) +([\d.]+) +([\d.]+) +$", table)
    runs = {run.info.run_name: run.data for run in swept.runs() if "dvc.experiment" in run.data.tags}
    assert [name for name, *_ in rows] == sorted(runs, key=lambda name: runs[name].metrics["final_val_loss"])
    for name, loss, rate, ratio in rows:
        assert float(loss) == pytest.approx(runs[name].metrics["final_val_loss"], rel=1e-4)
        assert (rate, ratio) == (runs[name].params["peak_lr"], runs[name].params["warmup_ratio"])


def test_mlflow_finds_them_by_the_documented_filter(swept: Workspace) -> None:
    (line,) = re.findall(r"(?m)^tags\.`dvc\.baseline` = .*$", DOCS)
    commit = swept.succeed("git", "rev-parse", "HEAD").strip()
    words = line.replace("COMMIT", commit)
    assert commit in words
    experiment = swept.client().get_experiment_by_name("reprogpt")
    found = swept.client().search_runs([experiment.experiment_id], words)
    assert {run.data.params["peak_lr"] for run in found} == {"0.0003", "0.001", "0.003"}
    assert {run.data.params["warmup_ratio"] for run in found} == {"0.2"}
