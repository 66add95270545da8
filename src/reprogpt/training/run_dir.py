"""Run directories: they contain the checkpoints of unfinished trainings, one directory per training.

A directory's name is a fingerprint of everything that the training's bits depend on. They are in
.reprogpt/checkpoints of the main repository: not among DVC's outs, which DVC removes before a stage runs, and not in
a queued experiment's copy of the workspace, which is removed afterwards.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from reprogpt.dvc.digest import cached_files, dvc_md5
from reprogpt.dvc.lock import locked_stage, recorded_inputs, recorded_outs
from reprogpt.dvc.pipeline import out_paths, stage_definition
from reprogpt.files import read_json_or_empty, write_json_atomic
from reprogpt.messages import print_message
from reprogpt.paths import repository_root, state_dir
from reprogpt.process.stop import StopRequest

LOCK_TIMEOUT = 30.0  # seconds to wait for another process; an orphaned one stops after its current step
METADATA = "training.json"
COMPLETE = "complete.json"
LOCK = "lock"

Origin = dict[str, Any]  # inputs: pipeline.stage_inputs of train; environment: name -> value; workspace: bool


@dataclass(frozen=True)
class RunDirLock:
    """A training's run directory, locked by this process.

    training_id: 32 hex digits, the same from the training's first start to its end, through all resumes.
    run_dir: None if another process has locked it or it is not writable; this training then saves no checkpoints.
    """

    training_id: str
    run_dir: Path | None
    origin: Origin


@contextmanager
def lock_run_dir(inputs: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[RunDirLock]:
    """Lock the run directory of the training with these inputs, creating it for a new training.

    If another process holds the lock for longer than LOCK_TIMEOUT, or the directory can't be written, this process
    trains without a run directory, with a warning. Raises OrphanedError if DVC ends in the meantime.
    """
    origin = {"inputs": dict(inputs), "environment": dict(environment), "workspace": _in_workspace()}
    run_dir = _run_dirs() / _fingerprint(origin)
    lock = None
    try:
        lock = _acquire(run_dir)
        if lock:
            _prepare(run_dir, origin)
    except OSError as error:
        print_message(f"{run_dir} can't be written: {error.strerror or error}; this training saves no checkpoints")
        if lock:
            lock.release()
        lock = None
    if lock is None:
        yield RunDirLock(uuid.uuid4().hex, None, origin)
        return
    try:
        yield RunDirLock(_read_metadata(run_dir)["training_id"], run_dir, origin)
    finally:
        lock.release()


def _prepare(run_dir: Path, origin: Origin) -> None:
    if _is_recorded(run_dir):  # DVC already has this result and was asked to train again
        _remove_contents(run_dir)
    if not _read_metadata(run_dir):
        write_json_atomic(run_dir / METADATA, {"training_id": uuid.uuid4().hex, **origin})


def mark_complete(run_dir_lock: RunDirLock) -> None:
    """Record that train's outs are in place. If dvc.lock records them already, remove the run directory.

    If that can't be written, the checkpoints stay: a complete training does not fail because of it.
    """
    run_dir = run_dir_lock.run_dir
    if run_dir is None:
        return
    outs = {path: dvc_md5(Path(path)) for path in out_paths(stage_definition("train"))}
    try:
        write_json_atomic(run_dir / COMPLETE, outs)
    except OSError as error:
        print_message(f"{run_dir / COMPLETE} can't be written: {error.strerror or error}; the checkpoints stay")
        return
    if _is_recorded(run_dir):
        remove_run_dir(run_dir)


def prune() -> None:
    """Remove the run directories that nobody will resume, except those locked by another process.

    These are of trainings that dvc.lock records and, in the workspace, of those that the recorded one replaced. Call
    after train, when DVC has written dvc.lock.
    """
    for metadata in _run_dirs().glob(f"*/{METADATA}"):
        run_dir = metadata.parent
        is_replaced = _in_workspace() and _read_metadata(run_dir).get("workspace", False)
        is_lost_without_it = _matches_lock(run_dir) and not _is_cached(run_dir)
        if is_lost_without_it or not (is_replaced or _is_recorded(run_dir)):
            continue
        with suppress(Timeout, OSError), FileLock(run_dir / LOCK).acquire(timeout=0):  # OSError: the next stage tries
            remove_run_dir(run_dir)


def remove_run_dir(run_dir: Path) -> None:
    """Remove a run directory that this process has locked. What can't be removed stays."""
    with suppress(OSError):
        _remove_contents(run_dir)
        shutil.rmtree(run_dir, ignore_errors=True)


def changes_since_interrupted(run_dir_lock: RunDirLock) -> list[str]:
    """Differences to the latest other training that was interrupted in the workspace, one per line.

    Empty if there is none, and in a copy of the workspace, where experiments differ on purpose.
    """
    if run_dir_lock.run_dir is None or not run_dir_lock.origin["workspace"]:
        return []
    interrupted = [
        manifest
        for manifest in _run_dirs().glob("*/checkpoint-*.json")
        if manifest.parent != run_dir_lock.run_dir
        and not (manifest.parent / COMPLETE).exists()
        and _read_metadata(manifest.parent).get("workspace")
    ]
    if not interrupted:
        return []
    newest = max(interrupted, key=lambda path: path.stat().st_mtime)
    return describe_changes(_read_metadata(newest.parent), run_dir_lock.origin)


def raised_epochs(run_dir_lock: RunDirLock) -> tuple[int, int] | None:
    """n_epochs of the training that dvc.lock records, and this one's, if it is higher and no other parameter differs.

    None in a copy of the workspace, where experiments differ on purpose.
    """
    locked = locked_stage("train")
    if not locked or not run_dir_lock.origin["workspace"]:
        return None
    before, now = recorded_inputs(locked)["params"], run_dir_lock.origin["inputs"]["params"]
    if _changed_keys(before, now) != ["n_epochs"] or not before["n_epochs"] < now["n_epochs"]:
        return None
    return before["n_epochs"], now["n_epochs"]


def describe_changes(then: Origin, now: Origin) -> list[str]:
    """Differences between two trainings, one per line: parameters, then the environment, then files."""
    lines = []
    pairs = [(then["inputs"]["params"], now["inputs"]["params"]), (then["environment"], now["environment"])]
    for before, after in pairs:
        lines += [f"{key}: {before.get(key)} -> {after.get(key)}" for key in _changed_keys(before, after)]
    changed_files = _changed_keys(then["inputs"]["deps"], now["inputs"]["deps"])
    return lines + [f"{path} has changed" for path in changed_files]


def _changed_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [key for key in {**a, **b} if a.get(key) != b.get(key)]


def _acquire(run_dir: Path) -> FileLock | None:
    """The directory's lock, or None if another process keeps it."""
    timeout = 0.0
    while True:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run_dir / LOCK)
        try:
            lock.acquire(timeout=timeout)
            return lock
        except FileNotFoundError:  # the process that held the lock removed the directory
            continue
        except Timeout:
            if timeout:
                if stop := StopRequest().reason():  # DVC has ended, and its next run starts its own stage
                    raise stop from None
                print_message("the other process is still training; this one trains without checkpoints")
                return None
        timeout = LOCK_TIMEOUT
        print_message(
            f"already training with these parameters in another process; waiting up to {timeout:.0f} s for it"
        )


def _remove_contents(run_dir: Path) -> None:
    """Remove everything but the lock, the metadata last: a half-removed directory must not be taken for a new one."""
    for path in sorted(run_dir.glob("*"), key=lambda path: path.name == METADATA):
        if path.name != LOCK:
            path.unlink(missing_ok=True)


def _fingerprint(origin: Origin) -> str:
    determining = {key: origin[key] for key in ("inputs", "environment")}
    return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:32]


def _run_dirs() -> Path:
    return state_dir() / "checkpoints"


def _in_workspace() -> bool:
    return Path.cwd().resolve() == repository_root()


def _read_metadata(run_dir: Path) -> dict[str, Any]:
    return read_json_or_empty(run_dir / METADATA)


def _is_recorded(run_dir: Path) -> bool:
    """Whether DVC has the result of this training: dvc.lock records the outs, and the cache contains them."""
    return _matches_lock(run_dir) and _is_cached(run_dir)


def _is_cached(run_dir: Path) -> bool:
    """False if DVC's cache lacks a folder among the outs of this training.

    On a full disk, DVC writes dvc.lock and succeeds, but has no copy of a folder: it will train again. True where
    there is no cache at all.
    """
    folder = cached_files()
    if not folder.is_dir():
        return True
    folders = [md5 for md5 in read_json_or_empty(run_dir / COMPLETE).values() if str(md5).endswith(".dir")]
    return all((folder / md5[:2] / md5[2:]).exists() for md5 in folders)


def _matches_lock(run_dir: Path) -> bool:
    """Whether the current folder's dvc.lock records the outs of this training, made from the same inputs."""
    outs = read_json_or_empty(run_dir / COMPLETE)
    locked = locked_stage("train")
    if not outs or not locked:
        return False
    return outs == recorded_outs(locked) and _read_metadata(run_dir).get("inputs") == recorded_inputs(locked)
