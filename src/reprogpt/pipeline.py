"""What DVC records of the pipeline: definitions, parameters and digests, read and recomputed.

Paths in dvc.yaml and dvc.lock are relative to the current folder, the repository's root or a queued
experiment's copy of it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reprogpt.files import file_digest
from reprogpt.params import DVC_FILE, PARAMS_FILE, read_mapping

LOCK_FILE = Path("dvc.lock")
LARGE_BYTES = 1 << 24  # reading less takes no time


def repository_root() -> Path:
    """The main repository, where the MLflow store lives, also from within a queued experiment's copy.

    DVC sets DVC_ROOT for every stage it runs; without DVC it is the current folder.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def private_folder() -> Path:
    """What we keep for ourselves between commands, in the main repository; git and DVC ignore it."""
    return repository_root() / ".reprogpt"


def dvc_md5(path: Path) -> str:
    """The digest that dvc.lock records for a file, or, ending in .dir, for a folder."""
    if not path.is_dir():
        return file_digest(path, "md5")
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    listing = [{"md5": file_digest(path / name, "md5"), "relpath": name} for name in files]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def known_md5(path: Path) -> str:
    """dvc_md5, read from the name where a large file is a hard link into DVC's cache, so that its size costs no time.

    DVC takes the name for the digest, too, and makes such files read-only. Elsewhere (copies, reflinks, a cache that
    was moved) the file is read.
    """
    return _name_in_cache(path) or dvc_md5(path)


def _name_in_cache(path: Path) -> str | None:
    status = path.stat()
    folder = repository_root() / ".dvc/cache/files/md5"
    if status.st_size < LARGE_BYTES or status.st_nlink < 2 or path.is_dir() or not folder.is_dir():
        return None
    for prefix in folder.iterdir():
        with os.scandir(prefix) as entries:
            names = [entry.name for entry in entries if entry.inode() == status.st_ino]
        if names and (prefix / names[0]).samefile(path):
            return prefix.name + names[0]
    return None


def stage_definition(stage: str) -> dict[str, Any]:
    """The stage's entry in dvc.yaml."""
    definition: dict[str, Any] = read_mapping(DVC_FILE)["stages"][stage]
    return definition


def out_paths(definition: dict[str, Any]) -> list[str]:
    """Paths of a dvc.yaml stage's outs, metrics and plots."""
    listed = [out for kind in ("outs", "metrics", "plots") for out in definition.get(kind, [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in listed]


def stage_inputs(stage: str) -> dict[str, Any]:
    """What decides whether DVC runs the stage, as dvc.lock would record it now: cmd, deps and params."""
    definition = stage_definition(stage)
    values = read_mapping(PARAMS_FILE)
    return {
        "cmd": definition["cmd"],
        "deps": {dep: known_md5(Path(dep)) for dep in definition.get("deps", [])},
        "params": {key: values.get(key) for key in definition.get("params", [])},
    }


def run_key(stage: str = "train") -> str:
    """32 hex digits that stand for everything the stage is made from: the key_of its stage_inputs.

    It joins DVC and MLflow: the same under `dvc repro --force`, another whenever an input is.
    """
    return key_of(stage_inputs(stage))


def key_of(inputs: Mapping[str, Any]) -> str:
    """The run key that stands for these inputs of a stage, in the form of stage_inputs."""
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def locked_stage(stage: str) -> dict[str, Any]:
    """The stage's entry in dvc.lock, {} if it has none."""
    if not LOCK_FILE.exists():
        return {}
    entry: dict[str, Any] = read_mapping(LOCK_FILE).get("stages", {}).get(stage, {})
    return entry


def recorded_inputs(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs in a stage's dvc.lock entry, in the form of stage_inputs."""
    return {
        "cmd": entry["cmd"],
        "deps": {dep["path"]: dep["md5"] for dep in entry.get("deps", [])},
        "params": entry.get("params", {}).get(PARAMS_FILE.name, {}),
    }


def recorded_outs(entry: Mapping[str, Any]) -> dict[str, str]:
    """Path -> digest of the outs in a stage's dvc.lock entry."""
    return {out["path"]: out["md5"] for out in entry.get("outs", [])}


def is_up_to_date(stage: str) -> bool:
    """Whether DVC would skip the stage now: inputs and outs are those that dvc.lock records."""
    locked = locked_stage(stage)
    outs = {Path(path): md5 for path, md5 in recorded_outs(locked).items()}
    if not locked or not all(path.exists() and dvc_md5(path) == md5 for path, md5 in outs.items()):
        return False
    return recorded_inputs(locked) == stage_inputs(stage)
