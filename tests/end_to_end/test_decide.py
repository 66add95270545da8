"""The question of the documentation, asked as it says: queue two values with some seeds, run the queue, decide."""

import shlex
from pathlib import Path

import pytest

from tests.end_to_end.workspace import Workspace, documented, make_workspace

NUM_SEEDS = 6


@pytest.fixture(scope="module")
def queued(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The documented queue on a tiny configuration, run by two workers; higher rates, as two epochs are short."""
    workspace = make_workspace(tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("cache"), sample_freq=0)
    command = documented("dvc exp run --queue -S 'peak_lr=0.0005,0.001' -S 'seed=range(1,7)'")
    workspace.succeed(*shlex.split(command.replace("0.0005,0.001", "0.001,0.004")))
    workspace.run_queue(num_tasks=2 * NUM_SEEDS, timeout=900)
    return workspace


@pytest.mark.slow
def test_the_queue_s_runs_are_decided_in_pairs(queued: Workspace) -> None:
    done = queued.run("python", "-m", "reprogpt", "decide", "peak_lr")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{2 * NUM_SEEDS} runs with otherwise equal inputs" in done.stdout
    assert "peak_lr=0.004 is better than 0.001 for the typical seed" in done.stdout
    assert f"{NUM_SEEDS} of {NUM_SEEDS}" in done.stdout
    assert (queued.path / "decisions/peak_lr-final_val_loss.png").read_bytes().startswith(b"\x89PNG")
    assert not queued.succeed("git", "status", "--porcelain", "decisions")


@pytest.mark.slow
def test_every_seed_prefers_the_value_that_is_decided_for(queued: Workspace) -> None:
    runs = {(run.data.params["peak_lr"], run.data.params["seed"]): run.data.metrics for run in queued.runs()}
    differences = [
        runs["0.004", str(seed)]["final_val_loss"] - runs["0.001", str(seed)]["final_val_loss"]
        for seed in range(1, NUM_SEEDS + 1)
    ]
    assert all(difference < 0 for difference in differences)


@pytest.mark.slow
def test_compare_points_to_it(queued: Workspace) -> None:
    first = {run.data.params["peak_lr"]: run.info.run_id for run in queued.runs() if run.data.params["seed"] == "1"}
    done = queued.run("python", "-m", "reprogpt", "compare", *first.values())
    assert f"one seed each; `reprogpt decide peak_lr` has {NUM_SEEDS} pairs" in done.stdout


@pytest.mark.slow
def test_the_line_that_it_prints_queues_the_missing_runs(queued: Workspace) -> None:
    queued.succeed(*shlex.split("dvc exp run --temp -S peak_lr=0.002 -S seed=1"))
    done = queued.run("python", "-m", "reprogpt", "decide", "peak_lr")
    assert done.returncode == 1
    lines = [line for line in done.stdout.splitlines() if line.startswith("dvc exp run --queue")]
    assert lines[0] == "dvc exp run --queue -S 'peak_lr=0.002' -S 'seed=range(2,7)'"
    for line in lines:  # three values need eight pairs
        queued.succeed(*shlex.split(line))
    assert queued.succeed("dvc", "queue", "status").count("Queued") == 11
    done = queued.run("python", "-m", "reprogpt", "decide", "peak_lr")
    assert done.returncode == 1
    assert "the runs that this takes still train or are queued" in done.stdout
    queued.succeed("dvc", "queue", "remove", "--all")


@pytest.mark.slow
def test_what_changes_no_bit_is_identical(queued: Workspace) -> None:
    """eval_freq only watches: recorded in pairs, the difference is exactly 0."""
    for seed in (1, 2, 3):
        queued.succeed(*shlex.split(f"dvc exp run --temp -S eval_freq=1 -S peak_lr=0.001 -S seed={seed}"))
    done = queued.run("python", "-m", "reprogpt", "decide", "eval_freq", "--where", "peak_lr=0.001")
    assert done.returncode == 0
    assert "are identical to the bit in 3 pairs: it makes no difference here" in done.stdout


def test_a_fresh_clone_says_what_to_queue_and_what_is_queued(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "clone", tmp_path / "cache")
    done = workspace.run("python", "-m", "reprogpt", "decide", "peak_lr")
    assert done.returncode == 2
    command = "dvc exp run --queue -S 'peak_lr=0.0005,0.001' -S 'seed=range(1,7)'"
    assert command in done.stderr
    workspace.succeed(*shlex.split(command))
    done = workspace.run("python", "-m", "reprogpt", "decide", "peak_lr")
    assert done.returncode == 2
    assert "no run has finished yet: 0 still train, 12 are queued in DVC (dvc queue start)" in done.stderr
