"""Where interrupted trainings are kept: one folder each, named by all that their bits depend on.

They lie in the main repository under .reprogpt/resume: no DVC outs, which DVC removes before a stage
runs, and not in a queued experiment's copy, which is removed with everything in it.
"""

import hashlib
import json
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from reprogpt.files import write_json_atomic
from reprogpt.pipeline import (
    dvc_md5,
    locked_stage,
    out_paths,
    private_folder,
    recorded_inputs,
    recorded_outs,
    repository_root,
    stage_definition,
)

WAIT_SECONDS = 30.0  # for another process of the same training; an orphan stops after its step
ABOUT, MADE, LOCK = "training.json", "made.json", "lock"

Origin = dict[str, Any]  # inputs: pipeline.stage_inputs of train; environment: name -> value


@dataclass(frozen=True)
class Held:
    """The folder of one training, which no other process has in hand.

    training_id: 32 hex digits, the same from the first start to the end, however often it is killed.
    folder: None where another process had it, so that nothing can be kept.
    """

    training_id: str
    folder: Path | None
    origin: Origin


@contextmanager
def hold_training(inputs: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[Held]:
    """Take the folder of the training with these inputs in hand, making it at its first start.

    Where another process has it and keeps it for WAIT_SECONDS, this one goes on without a folder, and says so.
    """
    origin = {"inputs": dict(inputs), "environment": dict(environment), "workspace": _in_workspace()}
    folder = _folders() / _fingerprint(origin)
    lock = _acquire(folder)
    if lock is None:
        yield Held(uuid.uuid4().hex, None, origin)
        return
    try:
        if _is_recorded(folder):  # DVC has this result already and was asked for another training
            _remove_contents(folder)
        if not _about(folder):
            write_json_atomic(folder / ABOUT, {"training_id": uuid.uuid4().hex, **origin})
        yield Held(_about(folder)["training_id"], folder, origin)
    finally:
        lock.release()


def mark_made(held: Held) -> None:
    """Say that train's outs are in place. If dvc.lock has them already, nothing is kept any longer."""
    if held.folder is None:
        return
    outs = {path: dvc_md5(Path(path)) for path in out_paths(stage_definition("train"))}
    write_json_atomic(held.folder / MADE, outs)
    if _is_recorded(held.folder):
        discard(held.folder)


def release_trainings() -> None:
    """Remove what nobody will resume: trainings that dvc.lock records, and in the workspace those it has replaced.

    Call after train, when DVC has written dvc.lock. What another process has in hand stays.
    """
    for about in _folders().glob(f"*/{ABOUT}"):
        folder = about.parent
        replaced = _in_workspace() and _about(folder).get("workspace", False)
        if not (replaced or _is_recorded(folder)):
            continue
        with suppress(Timeout, FileNotFoundError), FileLock(folder / LOCK).acquire(timeout=0):
            discard(folder)


def discard(folder: Path) -> None:
    """Remove a training's folder, which the caller has in hand."""
    _remove_contents(folder)
    shutil.rmtree(folder, ignore_errors=True)


def interrupted_elsewhere(held: Held) -> list[str]:
    """What differs, in words, from the newest other training that was interrupted in the workspace.

    Empty where there is none, and in a copy of the workspace, where experiments differ by intention.
    """
    if held.folder is None or not held.origin["workspace"]:
        return []
    points = [path for path in _folders().glob("*/point-*.json") if not (path.parent / MADE).exists()]
    others = [path for path in points if path.parent != held.folder and _about(path.parent).get("workspace")]
    if not others:
        return []
    newest = max(others, key=lambda path: path.stat().st_mtime)
    return differences(_about(newest.parent), held.origin)


def differences(then: Origin, now: Origin) -> list[str]:
    """What makes two trainings two, in words: parameters, then the environment, then files."""
    (then_inputs, now_inputs) = (then["inputs"], now["inputs"])
    files = _changed(then_inputs["deps"], now_inputs["deps"])
    values = [(then_inputs["params"], now_inputs["params"]), (then["environment"], now["environment"])]
    words = [f"{key}: {a.get(key)} -> {b.get(key)}" for a, b in values for key in _changed(a, b)]
    return words + [f"{path} has changed" for path in files]


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [key for key in {**a, **b} if a.get(key) != b.get(key)]


def _acquire(folder: Path) -> FileLock | None:
    """The folder's lock, or None where another process keeps it."""
    waited = 0.0
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=waited)
            return lock
        except FileNotFoundError:  # who had the folder in hand has removed it
            continue
        except Timeout:
            if waited:
                _say("it goes on, so this one trains by itself, and starts from the beginning if it is killed")
                return None
        waited = WAIT_SECONDS
        _say(f"another process is at this very training; waiting up to {waited:.0f} s for it to stop")


def _remove_contents(folder: Path) -> None:
    """Remove all but the lock, what the training is last: a half-removed one must not pass for a new one."""
    for path in sorted(folder.glob("*"), key=lambda path: path.name == ABOUT):
        if path.name != LOCK:
            path.unlink(missing_ok=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _fingerprint(origin: Origin) -> str:
    facts = {key: origin[key] for key in ("inputs", "environment")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _folders() -> Path:
    return private_folder() / "resume"


def _in_workspace() -> bool:
    return Path.cwd().resolve() == repository_root()


def _about(folder: Path) -> dict[str, Any]:
    return _read(folder / ABOUT)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _is_recorded(folder: Path) -> bool:
    """Whether dvc.lock of the current folder holds what this training made, from what it was made from."""
    made, locked = _read(folder / MADE), locked_stage("train")
    if not made or not locked:
        return False
    return made == recorded_outs(locked) and _about(folder).get("inputs") == recorded_inputs(locked)
