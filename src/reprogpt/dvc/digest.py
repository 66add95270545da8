"""The digests that DVC records: the MD5 of a file or folder, with .dvcignore applied; and DVC's cache of such files."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import platformdirs
from configobj import ConfigObj, ConfigObjError
from pathspec import GitIgnoreSpec

from reprogpt.files import file_digest
from reprogpt.paths import repository_root

LARGE_FILE_BYTES = 1 << 24  # smaller files are simply read
IGNORE_FILE = Path(".dvcignore")


def dvc_md5(path: Path) -> str:
    """The MD5 that dvc.lock records for a file, or for a folder, ending in .dir. .dvcignore applies to folders."""
    if not path.is_dir():
        return file_digest(path, "md5")
    return folder_md5({file.relative_to(path).as_posix(): file_digest(file, "md5") for file in files_in(path)})


def folder_md5(files: Mapping[str, str]) -> str:
    """The MD5 that dvc.lock records for a folder with these files: path in the folder -> MD5."""
    listing = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return content_md5(json.dumps(listing, sort_keys=True).encode()) + ".dir"


def content_md5(content: bytes) -> str:
    """The MD5 that dvc.lock records for a file with this content."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


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

    DVC trusts these names too, and makes such files read-only. Other files (copies, reflinks) are read.
    """
    return _name_in_cache(path) or dvc_md5(path)


def _name_in_cache(path: Path) -> str | None:
    status = path.stat()
    folder = cached_files()
    if status.st_size < LARGE_FILE_BYTES or status.st_nlink < 2 or path.is_dir() or not folder.is_dir():
        return None
    for prefix in folder.iterdir():
        with os.scandir(prefix) as entries:
            names = [entry.name for entry in entries if entry.inode() == status.st_ino]
        if names and (prefix / names[0]).samefile(path):
            return prefix.name + names[0]
    return None


def cached_files() -> Path:
    """Where DVC's cache has its files, by their MD5: folders of two hex digits, files of thirty.

    The settings are read here: DVC takes a second to start, and importing it replaces sys.stdout.
    """
    dvc = repository_root() / ".dvc"
    user = os.environ.get("DVC_GLOBAL_CONFIG_DIR") or platformdirs.user_config_dir("dvc", "iterative")
    system = os.environ.get("DVC_SYSTEM_CONFIG_DIR") or platformdirs.site_config_dir("dvc", "iterative")
    for settings in (dvc / "config.local", dvc / "config", Path(user, "config"), Path(system, "config")):
        if folder := _cache_dir_in(settings):
            return settings.parent / folder / "files/md5"
    return dvc / "cache/files/md5"


def _cache_dir_in(settings: Path) -> Path | None:
    """cache.dir in a file of DVC's settings; None if it is not set there, or DVC would refuse the file."""
    try:
        folder = ConfigObj(str(settings))["cache"]["dir"]
    except (ConfigObjError, UnicodeDecodeError, OSError, LookupError, TypeError):
        return None
    return Path(folder).expanduser() if isinstance(folder, str) else None
