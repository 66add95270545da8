"""Several processes train as one does: to rounding without dropout, and to the same bits each time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reprogpt.distributed.process_group import SINGLE_PROCESS
from tests.distributed.in_processes import run as run_training

ROOT = Path(__file__).resolve().parents[2]
NO_DROPOUT = {"batch_size": 6, "n_epochs": 1, "drop_rate": 0.0, "eval_freq": 5, "eval_iter": 2, "save_seconds": 1e-9}
DROPOUT = {**NO_DROPOUT, "drop_rate": 0.1, "activation_checkpointing": True}
INTERVENTIONS = {
    **NO_DROPOUT,
    "tie_weights": True,
    "keep": "best",
    "decay_matrices_only": True,
    "clip_from": "start",
    "max_norm": 0.5,
    "peak_lr": 0.05,
}
NUM_STEPS = 20


def trainings(nproc_per_node: int) -> list[dict[str, Any]]:
    shared = {"nproc_per_node": nproc_per_node}
    return [
        {"name": "ddp", **NO_DROPOUT, **shared},
        {"name": "fsdp", "parallel": "fsdp", **NO_DROPOUT, **shared},
        {
            "name": "accumulated",
            **NO_DROPOUT,
            **shared,
            "batch_size": 12,
            "accumulate": 2,
            "activation_checkpointing": True,
        },
        *(
            {"name": f"{parallel}-{name}", "parallel": parallel, **DROPOUT, **shared, "stop_after": stop_after}
            for parallel in ("ddp", "fsdp")
            for name, stop_after in (("a", 0), ("b", 7), ("b", 0))
        ),
        *(
            {"name": f"{parallel}-{name}", "parallel": parallel, **INTERVENTIONS, **shared, "stop_after": stop_after}
            for parallel in ("ddp", "fsdp")
            for name, stop_after in (("interventions-a", 0), ("interventions-b", 7), ("interventions-b", 0))
        ),
        *(
            {"name": f"{parallel}-late", "parallel": parallel, **DROPOUT, **shared, "log_interval": 4}
            for parallel in ("ddp", "fsdp")
        ),
        *(
            {"name": "ddp-late-stopped", **DROPOUT, **shared, "log_interval": 4, "stop_after": stop_after}
            for stop_after in (7, 0)
        ),
    ]


Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def distributed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Results of trainings() in this number of processes, by name, in order."""
    folder = tmp_path_factory.mktemp("distributed")
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}"]
    command = [sys.executable, "-m", *torchrun, "-m", "tests.distributed.in_processes", str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command.append(json.dumps(trainings(request.param)))
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results: Results = {}
    for result in json.loads(done.stdout):
        results.setdefault(result["name"], []).append(result)
    return results


@pytest.fixture(scope="module")
def single_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_training(
        SINGLE_PROCESS, tmp_path_factory.mktemp("single_process"), {"name": "single_process", **NO_DROPOUT}
    )


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_without_dropout_the_metrics_are_those_of_one_process(
    distributed: Results, single_process: dict[str, Any], parallel: str
) -> None:
    [result] = distributed[parallel]
    assert len(result["records"]) == len(single_process["records"]) == NUM_STEPS
    for ours, theirs in zip(result["records"], single_process["records"], strict=True):
        assert ours[:5] == pytest.approx(theirs[:5], abs=1e-5)
        assert ours[5] == theirs[5]  # the sample's tokens


def test_gradient_accumulation_gives_the_metrics_of_the_whole_batch(distributed: Results, tmp_path: Path) -> None:
    [result] = distributed["accumulated"]
    expected = run_training(SINGLE_PROCESS, tmp_path, {"name": "whole", **NO_DROPOUT, "batch_size": 12})
    assert [record[:5] for record in result["records"]] == [
        pytest.approx(record[:5], abs=1e-5) for record in expected["records"]
    ]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_if_any_process_is_asked_to_stop_all_do_and_resume_to_the_same_bits(
    distributed: Results, parallel: str
) -> None:
    [uninterrupted] = distributed[f"{parallel}-a"]
    stopped, resumed = distributed[f"{parallel}-b"]
    assert stopped["end"] == "Terminated" and stopped["steps"] == list(range(8))
    assert resumed["end"] == "finished" and resumed["steps"] == list(range(8, NUM_STEPS))
    assert resumed["records"] == uninterrupted["records"]
    assert resumed["weights"] == uninterrupted["weights"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_tied_head_decay_of_matrices_and_the_best_weights_are_those_of_one_process_and_survive_a_stop(
    distributed: Results, tmp_path: Path, parallel: str
) -> None:
    [uninterrupted] = distributed[f"{parallel}-interventions-a"]
    _, resumed = distributed[f"{parallel}-interventions-b"]
    alone = run_training(SINGLE_PROCESS, tmp_path, {"name": "alone", **INTERVENTIONS})
    for ours, theirs in zip(uninterrupted["records"], alone["records"], strict=True):
        assert ours[:5] == pytest.approx(theirs[:5], abs=0.01)
    assert resumed["records"] == uninterrupted["records"]
    assert resumed["weights"] == uninterrupted["weights"]
    assert resumed["kept"] == uninterrupted["kept"] != uninterrupted["weights"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_records_that_are_fetched_together_are_the_same(distributed: Results, parallel: str) -> None:
    """As on GPUs, where the metrics of several steps are copied from the device at once."""
    [result], [wanted] = distributed[f"{parallel}-late"], distributed[f"{parallel}-a"]
    assert result["steps"] == list(range(NUM_STEPS))
    assert result["records"] == wanted["records"]
    assert result["weights"] == wanted["weights"]


def test_processes_that_fetch_records_together_stop_together_and_resume_to_the_same_bits(distributed: Results) -> None:
    stopped, resumed = distributed["ddp-late-stopped"]
    [wanted] = distributed["ddp-a"]
    assert stopped["end"] == "Terminated" and len(stopped["steps"]) < NUM_STEPS
    assert stopped["steps"] + resumed["steps"] == list(range(NUM_STEPS))
    assert resumed["records"] == wanted["records"]
    assert resumed["weights"] == wanted["weights"]


def test_each_shard_has_dropout_masks_of_its_own(distributed: Results, tmp_path: Path) -> None:
    """With one process's masks for all shards, the first step's loss would be that of a single process."""
    [result] = distributed["ddp-a"]
    first = run_training(SINGLE_PROCESS, tmp_path, {"name": "single_process", **DROPOUT})["records"][0][0]
    assert result["records"][0][0] != pytest.approx(first, abs=1e-5)
    assert result["records"][0][0] == pytest.approx(first, abs=0.1)
