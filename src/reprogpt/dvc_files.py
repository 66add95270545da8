"""Reads dvc.yaml and dvc.lock, and computes the digests that DVC records.

Paths in both files are relative to the current folder: the repository's root, or a queued experiment's copy of it.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pathspec import GitIgnoreSpec

from reprogpt.files import file_digest, repository_root
from reprogpt.params.loader import DVC_FILE, LOCK_FILE, PARAMS_FILE, read_mapping

LARGE_FILE_BYTES = 1 << 24  # smaller files are simply read
IGNORE_FILE = Path(".dvcignore")
RWLOCK = Path(".dvc/tmp/rwlock")  # what running DVC processes read and write, so that no two write the same
_RWLOCK_READS, _RWLOCK_WAIT = 20, 0.1  # attempts, and seconds between them: DVC does not replace it atomically


def dvc_md5(path: Path) -> str:
    """The MD5 that dvc.lock records for a file, or for a folder, ending in .dir. .dvcignore applies to folders."""
    if not path.is_dir():
        return file_digest(path, "md5")
    files = sorted(file.relative_to(path).as_posix() for file in files_in(path))
    listing = [{"md5": file_digest(path / name, "md5"), "relpath": name} for name in files]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def files_in(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders that .dvcignore does not exclude.

    Patterns are relative to the current folder, or to an absolute `folder`, such as one in a temporary clone.
    """
    ignored = _ignored_patterns()
    base = folder if folder.is_absolute() else Path()
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if not ignored.match_file(file.relative_to(base))]


def _ignored_patterns() -> GitIgnoreSpec:
    lines = IGNORE_FILE.read_text("utf-8").splitlines() if IGNORE_FILE.exists() else []
    return GitIgnoreSpec.from_lines(lines)


def cached_md5(path: Path) -> str:
    """dvc_md5, but for a large file that is a hard link into DVC's cache, its name there, which is its MD5.

    DVC trusts these names too, and makes such files read-only. Other files (copies, reflinks, a moved cache) are read.
    """
    return _name_in_cache(path) or dvc_md5(path)


def _name_in_cache(path: Path) -> str | None:
    status = path.stat()
    folder = default_cache()
    if status.st_size < LARGE_FILE_BYTES or status.st_nlink < 2 or path.is_dir() or not folder.is_dir():
        return None
    for prefix in folder.iterdir():
        with os.scandir(prefix) as entries:
            names = [entry.name for entry in entries if entry.inode() == status.st_ino]
        if names and (prefix / names[0]).samefile(path):
            return prefix.name + names[0]
    return None


def default_cache() -> Path:
    """Where DVC's cache is unless its settings say otherwise: folders of two hex digits, files of thirty."""
    return repository_root() / ".dvc/cache/files/md5"


def stage_definition(stage: str) -> dict[str, Any]:
    """The stage's entry in dvc.yaml."""
    definition: dict[str, Any] = read_mapping(DVC_FILE)["stages"][stage]
    return definition


def out_paths(definition: dict[str, Any]) -> list[str]:
    """Paths of a dvc.yaml stage's outs, metrics and plots."""
    listed = [out for kind in ("outs", "metrics", "plots") for out in definition.get(kind, [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in listed]


def stage_inputs(stage: str) -> dict[str, Any]:
    """A stage's cmd, deps (path -> digest) and params as dvc.lock would record them now."""
    definition = stage_definition(stage)
    values = read_mapping(PARAMS_FILE)
    return {
        "cmd": definition["cmd"],
        "deps": {dep: cached_md5(Path(dep)) for dep in definition.get("deps", [])},
        "params": {key: values.get(key) for key in definition.get("params", [])},
    }


def run_key(stage: str = "train") -> str:
    """32 hex digits that identify a stage's inputs: run_key_of(stage_inputs(stage)).

    It links DVC and MLflow: unchanged by `dvc repro --force`, changed by any change of an input.
    """
    return run_key_of(stage_inputs(stage))


def run_key_of(inputs: Mapping[str, Any]) -> str:
    """The run key of a stage's inputs, in the form of stage_inputs."""
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


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
