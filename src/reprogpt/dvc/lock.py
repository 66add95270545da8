"""What dvc.lock records of the stages.

Paths are relative to the current folder: the repository's root, or a queued experiment's copy of it.
"""

import os
from collections.abc import Mapping
from typing import Any

from reprogpt.errors import ParamsError
from reprogpt.params.loader import LOCK_FILE, PARAMS_FILE, read_mapping, unknown_keys


def locked_stage(stage: str) -> dict[str, Any]:
    """The stage's entry in dvc.lock, {} if it has none."""
    if not LOCK_FILE.exists():
        return {}
    entry: dict[str, Any] = read_mapping(LOCK_FILE).get("stages", {}).get(stage, {})
    return entry


def from_root(entry: Mapping[str, Any], wdir: str) -> dict[str, Any]:
    """A stage's entry with the paths of its files relative to the repository's root, not to the stage's wdir.

    Where a template in wdir hides the folder, the files are left out.
    """
    moved: dict[str, Any] = {"cmd": entry["cmd"]}
    if "${" in wdir:
        return moved
    for kind in ("deps", "outs"):
        moved[kind] = [file | {"path": os.path.normpath(f"{wdir}/{file['path']}")} for file in entry.get(kind, [])]
    moved["params"] = {os.path.normpath(f"{wdir}/{file}"): values for file, values in entry.get("params", {}).items()}
    return moved


def recorded_inputs(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that a stage's dvc.lock entry records, in the form of pipeline.stage_inputs."""
    return {
        "cmd": entry["cmd"],
        "deps": _digests(entry.get("deps", [])),
        "params": entry.get("params", {}).get(PARAMS_FILE.name, {}),
    }


def recorded_outs(entry: Mapping[str, Any]) -> dict[str, str]:
    """The outs that a stage's dvc.lock entry records: path -> digest."""
    return _digests(entry.get("outs", []))


def _digests(files: list[dict[str, Any]]) -> dict[str, str]:
    """Path -> digest. DVC records files outside the repository by other marks, which can't be checked here."""
    return {file["path"]: file["md5"] for file in files if "md5" in file}


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
