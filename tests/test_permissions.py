"""Who can read what is made: the user's umask decides, as with git and MLflow."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reprogpt.files import write_text_atomic
from reprogpt.model.gpt2_format import save_model
from reprogpt.tracking.deliver.outbox import open_outbox
from reprogpt.tracking.deliver.records import File, TrainingRun
from reprogpt.tracking.store.client import open_store
from reprogpt.training import checkpoint_files
from reprogpt.training.run_dir import lock_run_dir
from tests.tiny import tiny_model


@pytest.fixture(params=[0o077, 0o022, 0o002], ids=lambda mask: f"umask {mask:03o}")
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_everything_that_is_made_follows_the_umask(umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.chdir(root)
    open_store()
    write_text_atomic(Path("params.yaml"), "seed: 1")
    outbox = open_outbox("1")
    outbox.append(TrainingRun(name="a", tags={}, params={}, datasets=[], store="s"))
    outbox.append(File(kept=outbox.keep_file(Path("params.yaml")), folder=""))
    outbox.mark_nothing_uploaded()
    save_model(Path("data/model"), tiny_model())
    inputs = {"cmd": "", "deps": {}, "params": {}}
    with lock_run_dir(inputs, {}) as run_dir_lock:
        assert run_dir_lock.run_dir is not None
        checkpoint = checkpoint_files.slots(run_dir_lock.run_dir)[0]
        digests = checkpoint_files.write(checkpoint, {"a": torch.zeros(2)})
        checkpoint_files.commit(checkpoint, 1, digests, b"", run_dir_lock.training_id)
    made = {path.relative_to(root).as_posix(): path.stat().st_mode & 0o777 for path in root.rglob("*")}
    assert {"mlflow.db", ".reprogpt/outbox/1/records.jsonl", "data/model/model.safetensors"} < made.keys()
    least = {"mlflow.db"}  # SQLite asks for 644
    for name, mode in made.items():
        asked = 0o777 if (root / name).is_dir() else 0o644 if name in least else 0o666
        assert mode == asked & ~umask, name
    outbox.release()
