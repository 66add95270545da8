"""What dvc.lock records of the stages.

Paths are relative to the current folder: the repository's root, or a queued experiment's copy of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reprogpt.errors import ParamsError
from reprogpt.params.loader import PARAMS_FILE, read_mapping, unknown_keys

LOCK_FILE = Path("dvc.lock")


def locked_stage(stage: str) -> dict[str, Any]:
    """The stage's entry in dvc.lock, {} if it has none."""
    if not LOCK_FILE.exists():
        return {}
    entry: dict[str, Any] = read_mapping(LOCK_FILE).get("stages", {}).get(stage, {})
    return entry


def recorded_inputs(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that a stage's dvc.lock entry records, in the form of pipeline.stage_inputs."""
    return {
        "cmd": entry["cmd"],
        "deps": {dep["path"]: dep["md5"] for dep in entry.get("deps", [])},
        "params": entry.get("params", {}).get(PARAMS_FILE.name, {}),
    }


def recorded_outs(entry: Mapping[str, Any]) -> dict[str, str]:
    """The outs that a stage's dvc.lock entry records: path -> digest."""
    return {out["path"]: out["md5"] for out in entry.get("outs", [])}


def differs_from_last_result(stage: str) -> bool:
    """Whether params.yaml has another value than dvc.lock records for the stage's last result.

    True also if params.yaml can't be read; False if there is no such result.
    """
    try:
        recorded = locked_stage(stage)["params"][PARAMS_FILE.name]
    except (ParamsError, OSError, LookupError, TypeError, AttributeError):
        return False
    try:
        values = read_mapping(PARAMS_FILE)
    except (ParamsError, OSError):
        return True
    return bool(unknown_keys(values)) or any(values.get(key) != value for key, value in recorded.items())
