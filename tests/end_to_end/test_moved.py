"""A repository's folder is copied and moved in the middle of a training, and each goes on as its own."""

import shutil

import pytest

from tests.end_to_end.workspace import Workspace, kill_after_a_checkpoint, make_workspace

pytestmark = pytest.mark.slow  # tests/tracking/store/test_artifact_locations.py tests the store


def test_a_moved_and_a_copied_clone_resume_each_in_its_own_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("folder")
    cache = tmp_path_factory.mktemp("cache")
    clone = make_workspace(folder / "clone", cache, n_epochs=6, save_seconds=0.05)
    kill_after_a_checkpoint(clone, "dvc", "repro")
    shutil.copytree(clone.path, folder / "copied", symlinks=True)
    clone.path.rename(folder / "moved")
    weights = set()
    for name in ("copied", "moved"):
        there = Workspace(folder / name, cache)
        output = there.succeed("dvc", "repro")
        assert "resumed from the checkpoint at step " in output
        (run,) = there.runs()
        assert run.info.status == "FINISHED"
        losses = there.client().get_metric_history(run.info.run_id, "loss")
        assert [point.step for point in losses] == list(range(54))
        assert there.model_folder(run).is_relative_to(there.path) and {"params.yaml"} < there.artifacts(run)
        assert not list((there.path / ".reprogpt/outbox").iterdir())
        shutil.rmtree(there.path / "data/model")
        there.succeed("python", "-m", "reprogpt", "generate", "--run", run.info.run_id, "--length", "2")
        weights.add(run.data.tags["weights.sha256"])
        assert not clone.path.exists()
    assert len(weights) == 1
