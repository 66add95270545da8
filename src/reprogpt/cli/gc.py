"""`reprogpt gc`: the disk space of runs that are gone from the MLflow store, and freeing it."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from reprogpt.cli.confirm import confirmed
from reprogpt.tracking.store import store_name
from reprogpt.tracking.unused_artifacts import (
    ArtifactFolder,
    UnusedArtifacts,
    find_unused,
    remove,
    remove_deleted_runs,
)


def gc(*, deleted: bool = False, dry_run: bool = False, yes: bool = False) -> int:
    """List the artifacts of runs that are gone and remove them: 0 if none are left, else 1.

    deleted: also those of runs that are deleted and could be restored. dry_run: only list. Without `yes` it asks on
    the terminal. Raises TrackingError if the store is no SQLite file, or can't be used.
    """
    found = find_unused()
    folders = found.unused + (found.restorable if deleted else [])
    print("\n".join(report(found, folders)))
    if not folders:
        return 0
    if dry_run or not (yes or confirmed("Remove them for good?")):
        print("nothing is removed")
        return 1
    if deleted:
        remove_deleted_runs()
    listed = {folder.path for folder in folders}
    # Looked for again: while the question was open, a run may have been restored.
    left = [folder for folder in find_unused().unused if folder.path in listed]
    remove(left)
    gone = [folder for folder in folders if not folder.path.exists()]
    print(f"removed {_sum(gone)}")
    return 0 if len(gone) == len(folders) else 1


def report(found: UnusedArtifacts, folders: Sequence[ArtifactFolder]) -> list[str]:
    """What would be removed, `folders`, and what would not, as lines for a terminal."""
    lines = [f"unused artifacts of the MLflow store {store_name()}"]
    lines += [_line(folder) for folder in folders] or ["  none"]
    if folders:
        lines += [_sum(folders)]
    waiting = [folder for folder in found.restorable if folder not in folders]
    if waiting:
        lines += [
            "",
            "kept: runs that are deleted, but that `mlflow runs restore` can bring back; --deleted takes them",
        ]
        lines += [*map(_line, waiting), _sum(waiting)]
    if found.kept:
        lines += ["", "kept: something else may need it; remove the folder yourself if nothing does"]
        lines += map(_line, found.kept)
    return lines


def _sum(folders: Sequence[ArtifactFolder]) -> str:
    return f"{len(folders)} folder{'' if len(folders) == 1 else 's'}, {_size(folders)}"


def _size(folders: Sequence[ArtifactFolder]) -> str:
    """In powers of 1000."""
    return f"{tqdm.format_sizeof(sum(folder.num_bytes for folder in folders))}B"


def _line(folder: ArtifactFolder) -> str:
    path = folder.path
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"  {_size([folder]):>7}  {shown}  {folder.reason}"
