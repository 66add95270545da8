"""The digests that DVC records: the MD5 of a file or folder, with .dvcignore applied, or from DVC's cache."""

import hashlib
import json
import os
from pathlib import Path

from pathspec import GitIgnoreSpec

from reprogpt.files import file_digest
from reprogpt.paths import repository_root

LARGE_FILE_BYTES = 1 << 24  # smaller files are simply read


IGNORE_FILE = Path(".dvcignore")


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
