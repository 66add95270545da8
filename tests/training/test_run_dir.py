"""Where interrupted trainings are kept, for how long, and that only one process has one in hand."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from reprogpt.dvc_files import dvc_md5
from reprogpt.training import run_dir
from reprogpt.training.run_dir import RunLock, changes_since_interrupted, lock_run, mark_complete, prune

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
    """A workspace in which train has made its out."""
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
    """The folder of a training that was killed after a checkpoint."""
    with lock_run(inputs, ENVIRONMENT) as held:
        assert held.folder is not None
        (held.folder / "checkpoint-a.json").write_text("{}")
    return held.folder


def kept() -> list[Path]:
    return list(Path(".reprogpt/resume").absolute().glob("*"))


def test_a_training_is_the_same_one_each_time_it_starts() -> None:
    with lock_run(INPUTS, ENVIRONMENT) as first:
        pass
    with lock_run(INPUTS, ENVIRONMENT) as second:
        assert (second.training_id, second.folder) == (first.training_id, first.folder)


@pytest.mark.parametrize(
    ("inputs", "environment"),
    [
        (other(seed=2), ENVIRONMENT),
        ({**INPUTS, "deps": {"tokens.npy": "d2"}}, ENVIRONMENT),
        (INPUTS, {**ENVIRONMENT, "threads": "1"}),
    ],
)
def test_another_input_or_environment_is_another_training(inputs: dict[str, Any], environment: dict[str, str]) -> None:
    with lock_run(INPUTS, ENVIRONMENT) as first, lock_run(inputs, environment) as second:
        assert second.folder != first.folder and second.training_id != first.training_id


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "LOCK_TIMEOUT", 0.2)


@pytest.fixture
def taken(impatient: None) -> Iterator[RunLock]:
    """A training that another process has in hand: a lock of another object is as good as one of another process."""
    folder = interrupted()
    with FileLock(folder / "lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_dir, "FileLock", lambda path: FileLock(path, is_singleton=False))
        yield RunLock("", folder, {})


def test_of_two_at_once_the_second_waits_and_then_keeps_nothing(
    taken: RunLock, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_run(INPUTS, ENVIRONMENT) as held:
        assert held.folder is None and held.training_id != ""
    said = capsys.readouterr().err
    assert "another process is at this very training; waiting up to 0 s" in said
    assert "it goes on, so this one trains by itself" in said


def test_what_another_process_has_in_hand_is_not_removed(taken: RunLock, root: Path) -> None:
    prune()
    assert kept() == [taken.folder]


def test_a_finished_training_stays_until_dvc_has_recorded_it(root: Path) -> None:
    with lock_run(INPUTS, ENVIRONMENT) as held:
        pass
    mark_complete(held)
    assert kept() == [held.folder]  # killed here, train would start again, and take its outs from what is kept
    write_lock(root)
    prune()
    assert kept() == []


def test_in_a_copy_only_what_its_own_lock_file_records_is_released(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(root))
    copy = root / "copy"
    copy.mkdir()
    for name in ("dvc.yaml", "model"):
        (copy / name).write_bytes((root / name).read_bytes())
    monkeypatch.chdir(copy)
    waiting = interrupted(other(seed=2))  # an experiment that was killed, to be queued again
    with lock_run(INPUTS, ENVIRONMENT) as held:
        pass
    mark_complete(held)
    write_lock(copy)
    prune()
    assert list((root / ".reprogpt/resume").glob("*")) == [waiting]


def test_a_forced_repeat_with_the_same_result_is_released_at_once(root: Path) -> None:
    write_lock(root)
    with lock_run(INPUTS, ENVIRONMENT) as held:
        pass
    mark_complete(held)
    assert kept() == []


def test_what_dvc_has_recorded_is_trained_again_when_asked_for(root: Path) -> None:
    with lock_run(INPUTS, ENVIRONMENT) as first:
        assert first.folder is not None
        (first.folder / "checkpoint-a.json").write_text("{}")
    mark_complete(first)
    write_lock(root)
    with lock_run(INPUTS, ENVIRONMENT) as second:  # dvc repro -f train
        assert second.training_id != first.training_id
        assert not list(first.folder.glob("checkpoint-*"))


def test_a_result_with_other_bits_than_recorded_is_not_trained_again(root: Path) -> None:
    """On another machine, say: DVC's record is of other weights, and this training is killed before it is renewed."""
    write_lock(root, out="0" * 32)
    with lock_run(INPUTS, ENVIRONMENT) as first:
        pass
    mark_complete(first)
    with lock_run(INPUTS, ENVIRONMENT) as second:
        assert second.training_id == first.training_id


def test_when_the_workspace_ends_a_pipeline_what_it_had_given_up_is_removed(root: Path) -> None:
    interrupted(other(seed=2))
    interrupted(other(seed=3))
    prune()
    assert kept() == []


def test_starting_afresh_says_what_is_not_as_it_was() -> None:
    folder = interrupted({**other(peak_lr=0.0005), "deps": {"tokens.npy": "d0"}})
    assert folder.exists()
    with lock_run(INPUTS, {**ENVIRONMENT, "threads": "1"}) as held:
        assert changes_since_interrupted(held) == [
            "peak_lr: 0.0005 -> 0.001",
            "threads: 2 -> 1",
            "tokens.npy has changed",
        ]


def test_a_first_training_has_nothing_to_explain() -> None:
    with lock_run(INPUTS, ENVIRONMENT) as held:
        assert changes_since_interrupted(held) == []
