"""Real stages with init_from: training starts from other weights. Tests run in their order."""

import json
import shutil
from typing import Any

import pytest

from reprogpt.files import file_digest
from tests.end_to_end.workspace import Workspace

pytestmark = pytest.mark.slow  # what is read and refused is tested in model/ and training/


def summary(workspace: Workspace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.path / "data/metrics/train.json").read_bytes())
    return found


def test_a_training_starts_from_another_ones_weights_and_records_which(finished: Workspace) -> None:
    ended_at = summary(finished)["last_val_loss"]
    shutil.copytree(finished.path / "data/model", finished.path / "start")
    digest = file_digest(finished.path / "start/model.safetensors")
    output = finished.succeed("dvc", "exp", "run", "-S", "init_from=start", "-S", "warmup_ratio=0")
    assert finished.stages_run(output) == ["train", "evaluate", "plot"]
    assert f"to pin these, set init_from_sha256 to\n{digest}" in output
    run = finished.runs()[-1]
    assert run.data.tags["started_from_sha256"] == digest
    assert summary(finished)["started_from_sha256"] == [digest]
    assert (run.data.params["init_from"], run.data.params["init_from_sha256"]) == ("start", "")
    first, *_ = finished.client().get_metric_history(run.info.run_id, "val_loss")
    assert abs(first.value - float(str(ended_at))) < 1  # drawn from the seed, it begins 4 above


def test_a_copy_of_the_workspace_finds_the_folder_and_makes_the_same_bits(finished: Workspace) -> None:
    finished.succeed("dvc", "exp", "run", "--temp", "--force", "--name", "in-a-copy", "-S", "init_from=start")
    *_, before, copied = finished.runs()
    assert copied.info.run_name == "in-a-copy"
    assert copied.data.tags["weights.sha256"] == before.data.tags["weights.sha256"]


def test_verify_reruns_it_and_lineage_names_its_initial_weights(finished: Workspace) -> None:
    output = finished.succeed("python", "-m", "reprogpt", "verify", "--stage", "train")
    assert "the same: all " in output
    run = finished.runs()[-1]
    output = finished.succeed("python", "-m", "reprogpt", "lineage", run.info.run_id)
    assert f"  started from start\n  sha256      {run.data.tags['started_from_sha256']}\n" in output


def test_other_weights_in_the_folder_are_noticed_by_verify_and_by_a_pin(finished: Workspace) -> None:
    (then,) = summary(finished)["started_from_sha256"]
    shutil.copy(finished.path / "data/model/model.safetensors", finished.path / "start/model.safetensors")
    now = file_digest(finished.path / "start/model.safetensors")
    done = finished.run("python", "-m", "reprogpt", "verify", "--stage", "train")
    assert done.returncode == 1
    assert f"  started_from_sha256: {then} -> {now}" in done.stdout
    finished.set_params(init_from_sha256=f'"{then}"')
    failed = finished.run("dvc", "repro")
    assert failed.returncode != 0 and "Traceback" not in failed.stderr
    assert f"expected  init_from_sha256={then}\n  found     {now}" in failed.stderr
    assert "restores every output without training" in failed.stderr
