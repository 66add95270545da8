"""What dvc.lock records of the stages, and the lock file by which running DVC processes know each other.

Paths are relative to the current folder: the repository's root, or a queued experiment's copy of it.
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from reprogpt.dvc.digest import dvc_md5
from reprogpt.dvc.pipeline import stage_inputs
from reprogpt.params.loader import LOCK_FILE, PARAMS_FILE, read_mapping

RWLOCK = Path(".dvc/tmp/rwlock")  # what running DVC processes read and write, so that no two write the same
_RWLOCK_READS, _RWLOCK_WAIT = 20, 0.1  # attempts, and seconds between them: DVC does not replace it atomically


def locked_stage(stage: str) -> dict[str, Any]:
    """The stage's entry in dvc.lock, {} if it has none."""
    if not LOCK_FILE.exists():
        return {}
    entry: dict[str, Any] = read_mapping(LOCK_FILE).get("stages", {}).get(stage, {})
    return entry


def recorded_inputs(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that a stage's dvc.lock entry records, in the form of stage_inputs."""
    return {
        "cmd": entry["cmd"],
        "deps": {dep["path"]: dep["md5"] for dep in entry.get("deps", [])},
        "params": entry.get("params", {}).get(PARAMS_FILE.name, {}),
    }


def recorded_outs(entry: Mapping[str, Any]) -> dict[str, str]:
    """The outs that a stage's dvc.lock entry records: path -> digest."""
    return {out["path"]: out["md5"] for out in entry.get("outs", [])}


def is_up_to_date(stage: str) -> bool:
    """Whether DVC would skip the stage: inputs and outs are as dvc.lock records them."""
    locked = locked_stage(stage)
    outs = {Path(path): md5 for path, md5 in recorded_outs(locked).items()}
    if not locked or not all(path.exists() and dvc_md5(path) == md5 for path, md5 in outs.items()):
        return False
    return recorded_inputs(locked) == stage_inputs(stage)


def pids_writing_outs() -> set[int] | None:
    """The process ids of the DVC processes that run a stage here, by DVC's own record; a killed one may still be there.

    None if there is no such record, or none that can be read.
    """
    try:
        writers = read_rwlock().get("write", {})  # which is absent while no stage runs
        return {int(writer["pid"]) for writer in writers.values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def read_rwlock() -> dict[str, Any]:
    """DVC's record of its running processes.

    Raises OSError if it can't be read, ValueError if it was cut, as by a kill of DVC.
    """
    for _ in range(_RWLOCK_READS):
        with suppress(ValueError):
            record = json.loads(RWLOCK.read_text("utf-8"))
            if isinstance(record, dict):
                return record
        time.sleep(_RWLOCK_WAIT)
    raise ValueError(f"{RWLOCK} is not whole")
