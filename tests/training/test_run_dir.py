"""Run directories of interrupted trainings: how long they are kept, and that one process locks each."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from reprogpt.dvc.digest import dvc_md5
from reprogpt.errors import OrphanedError
from reprogpt.files import write_json_atomic
from reprogpt.training import run_dir
from reprogpt.training.run_dir import (
    RunDirLock,
    changes_since_interrupted,
    lock_run_dir,
    mark_complete,
    prune,
    raised_epochs,
)

INPUTS = {"cmd": "python -m stages.train", "deps": {"tokens.npy": "d1"}, "params": {"peak_lr": 0.001, "seed": 1}}
ENVIRONMENT = {"torch": "2.13.0", "threads": "2"}
DVC_YAML = """\
stages:
  train:
    cmd: python -m stages.train
    deps: [tokens.npy]
    params: [peak_lr, seed]
    outs: [model]
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace in which train has written its out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "model").write_text("weights")
    return tmp_path


def other(**params: Any) -> dict[str, Any]:
    return {**INPUTS, "params": {**INPUTS["params"], **params}}  # type: ignore[dict-item]


def write_lock(root: Path, *, out: str | None = None) -> None:
    """dvc.lock as DVC writes it after train with INPUTS."""
    entry = {
        "cmd": INPUTS["cmd"],
        "deps": [{"path": path, "md5": md5} for path, md5 in INPUTS["deps"].items()],  # type: ignore[attr-defined]
        "params": {"params.yaml": INPUTS["params"]},
        "outs": [{"path": "model", "md5": out or dvc_md5(root / "model")}],
    }
    (root / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"train": entry}}))


def interrupted(inputs: dict[str, Any] = INPUTS) -> Path:
    """The run directory of a training that was killed after a checkpoint."""
    with lock_run_dir(inputs, ENVIRONMENT) as run_dir_lock:
        assert run_dir_lock.run_dir is not None
        (run_dir_lock.run_dir / "checkpoint-a.json").write_text("{}")
    return run_dir_lock.run_dir


def run_dirs() -> list[Path]:
    return list(Path(".reprogpt/checkpoints").absolute().glob("*"))


def test_a_training_is_the_same_one_each_time_it_starts() -> None:
    with lock_run_dir(INPUTS, ENVIRONMENT) as first:
        pass
    with lock_run_dir(INPUTS, ENVIRONMENT) as second:
        assert (second.training_id, second.run_dir) == (first.training_id, first.run_dir)


@pytest.mark.parametrize(
    ("inputs", "environment"),
    [
        (other(seed=2), ENVIRONMENT),
        ({**INPUTS, "deps": {"tokens.npy": "d2"}}, ENVIRONMENT),
        (INPUTS, {**ENVIRONMENT, "threads": "1"}),
    ],
)
def test_another_input_or_environment_is_another_training(inputs: dict[str, Any], environment: dict[str, str]) -> None:
    with lock_run_dir(INPUTS, ENVIRONMENT) as first, lock_run_dir(inputs, environment) as second:
        assert second.run_dir != first.run_dir and second.training_id != first.training_id


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "LOCK_TIMEOUT", 0.2)


@pytest.fixture
def locked_elsewhere(short_timeout: None) -> Iterator[RunDirLock]:
    """A training that another process has locked: here, another lock object of this process."""
    path = interrupted()
    with FileLock(path / "lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_dir, "FileLock", lambda path: FileLock(path, is_singleton=False))
        yield RunDirLock("", path, {})


def test_of_two_at_once_the_second_waits_and_then_saves_no_checkpoints(
    locked_elsewhere: RunDirLock, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_run_dir(INPUTS, ENVIRONMENT) as run_dir_lock:
        assert run_dir_lock.run_dir is None and run_dir_lock.training_id != ""
    stderr = capsys.readouterr().err
    assert "already training with these parameters in another process; waiting up to 0 s" in stderr
    assert "the other process is still training; this one trains without checkpoints" in stderr


def test_one_whose_dvc_has_ended_while_it_waited_does_not_train(
    locked_elsewhere: RunDirLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    write_json_atomic(Path(".dvc/tmp/rwlock"), {"write": {}})
    with pytest.raises(OrphanedError), lock_run_dir(INPUTS, ENVIRONMENT):
        pass


def test_prune_leaves_what_another_process_has_locked(locked_elsewhere: RunDirLock, root: Path) -> None:
    prune()
    assert run_dirs() == [locked_elsewhere.run_dir]


def test_a_complete_training_is_kept_until_dvc_lock_records_it(root: Path) -> None:
    with lock_run_dir(INPUTS, ENVIRONMENT) as run_dir_lock:
        pass
    mark_complete(run_dir_lock)
    assert run_dirs() == [run_dir_lock.run_dir]  # killed here, train would resume from its last checkpoint
    write_lock(root)
    prune()
    assert run_dirs() == []


def test_in_a_copy_prune_removes_only_what_its_own_dvc_lock_records(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(root))
    copy = root / "copy"
    copy.mkdir()
    for name in ("dvc.yaml", "model"):
        (copy / name).write_bytes((root / name).read_bytes())
    monkeypatch.chdir(copy)
    waiting = interrupted(other(seed=2))  # an experiment that was killed, to be queued again
    with lock_run_dir(INPUTS, ENVIRONMENT) as run_dir_lock:
        pass
    mark_complete(run_dir_lock)
    write_lock(copy)
    prune()
    assert list((root / ".reprogpt/checkpoints").glob("*")) == [waiting]


def test_a_forced_repeat_with_the_same_result_is_removed_at_once(root: Path) -> None:
    write_lock(root)
    with lock_run_dir(INPUTS, ENVIRONMENT) as run_dir_lock:
        pass
    mark_complete(run_dir_lock)
    assert run_dirs() == []


def test_a_recorded_training_is_trained_again_when_forced(root: Path) -> None:
    with lock_run_dir(INPUTS, ENVIRONMENT) as first:
        assert first.run_dir is not None
        (first.run_dir / "checkpoint-a.json").write_text("{}")
    mark_complete(first)
    write_lock(root)
    with lock_run_dir(INPUTS, ENVIRONMENT) as second:  # dvc repro -f train
        assert second.training_id != first.training_id
        assert not list(first.run_dir.glob("checkpoint-*"))


def test_a_result_with_other_bits_than_recorded_is_not_trained_again(root: Path) -> None:
    """As on another machine: dvc.lock records other weights, and this training is killed before DVC updates it."""
    write_lock(root, out="0" * 32)
    with lock_run_dir(INPUTS, ENVIRONMENT) as first:
        pass
    mark_complete(first)
    with lock_run_dir(INPUTS, ENVIRONMENT) as second:
        assert second.training_id == first.training_id


def test_prune_in_the_workspace_removes_trainings_that_were_replaced(root: Path) -> None:
    interrupted(other(seed=2))
    interrupted(other(seed=3))
    prune()
    assert run_dirs() == []


def test_changes_since_the_interrupted_training_are_listed() -> None:
    path = interrupted({**other(peak_lr=0.0005), "deps": {"tokens.npy": "d0"}})
    assert path.exists()
    with lock_run_dir(INPUTS, {**ENVIRONMENT, "threads": "1"}) as run_dir_lock:
        assert changes_since_interrupted(run_dir_lock) == [
            "peak_lr: 0.0005 -> 0.001",
            "threads: 2 -> 1",
            "tokens.npy has changed",
        ]


@pytest.mark.parametrize(
    ("recorded", "now", "found"),
    [
        ({"n_epochs": 15}, {"n_epochs": 30}, (15, 30)),
        ({"n_epochs": 15}, {"n_epochs": 10}, None),
        ({"n_epochs": 15}, {"n_epochs": 30, "seed": 2}, None),
        ({"n_epochs": 15}, {"n_epochs": 15}, None),
    ],
)
def test_n_epochs_raised_after_the_end_is_told_from_other_changes(
    root: Path, recorded: dict[str, Any], now: dict[str, Any], found: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INPUTS, "params", other(**recorded)["params"])
    write_lock(root)
    with lock_run_dir(other(**now), ENVIRONMENT) as run_dir_lock:
        assert raised_epochs(run_dir_lock) == found


def test_without_a_finished_training_none_is_lengthened() -> None:
    with lock_run_dir(INPUTS, ENVIRONMENT) as run_dir_lock:
        assert raised_epochs(run_dir_lock) is None


def test_a_first_training_has_no_changes_to_list() -> None:
    with lock_run_dir(INPUTS, ENVIRONMENT) as run_dir_lock:
        assert changes_since_interrupted(run_dir_lock) == []


def fail(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_where_no_run_directory_can_be_made_the_training_runs_without_checkpoints(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / ".reprogpt").write_text("")  # a folder without permissions does not stop root
    with lock_run_dir(INPUTS, ENVIRONMENT) as run_dir_lock:
        assert run_dir_lock.run_dir is None and len(run_dir_lock.training_id) == 32
        mark_complete(run_dir_lock)
    prune()
    assert "this training saves no checkpoints" in capsys.readouterr().err


def test_a_disk_that_fails_after_the_training_does_not_end_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lock(root)
    with lock_run_dir(INPUTS, ENVIRONMENT) as run_dir_lock:
        monkeypatch.setattr(run_dir, "write_json_atomic", fail)
        mark_complete(run_dir_lock)
    assert "the checkpoints stay" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(root)
    with lock_run_dir(INPUTS, ENVIRONMENT) as run_dir_lock, monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", fail)
        mark_complete(run_dir_lock)
    assert run_dirs()


def test_a_result_that_cannot_be_removed_is_not_resumed_when_training_is_forced(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lock_run_dir(INPUTS, ENVIRONMENT) as run_dir_lock:
        mark_complete(run_dir_lock)
    write_lock(root)
    monkeypatch.setattr("pathlib.Path.unlink", fail)
    with lock_run_dir(INPUTS, ENVIRONMENT) as run_dir_lock:
        assert run_dir_lock.run_dir is None


def test_a_result_that_dvcs_full_cache_lacks_is_resumed_and_not_trained_again(root: Path) -> None:
    """DVC then writes dvc.lock and succeeds, but removes the outs and runs the stage again the next time."""
    (root / "model").unlink()
    (root / "model").mkdir()
    (root / "model/weights").write_text("weights")
    interrupted()
    with lock_run_dir(INPUTS, ENVIRONMENT) as run_dir_lock:
        mark_complete(run_dir_lock)
    write_lock(root)
    cache = root / ".dvc/cache/files/md5"
    cache.mkdir(parents=True)
    prune()
    with lock_run_dir(INPUTS, ENVIRONMENT) as run_dir_lock:
        assert run_dir_lock.run_dir is not None
        assert (run_dir_lock.run_dir / "checkpoint-a.json").exists()
    (root / ".dvc/config.local").write_text("[cache]\n    dir = /elsewhere\n")
    assert run_dir._is_recorded(run_dir_lock.run_dir)  # not known
    (root / ".dvc/config.local").unlink()
    md5 = dvc_md5(root / "model")
    (cache / md5[:2]).mkdir()
    (cache / md5[:2] / md5[2:]).touch()
    prune()
    assert run_dirs() == []
