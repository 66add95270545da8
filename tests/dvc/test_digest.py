"""Where DVC's cache is, by each of DVC's settings; tests/dvc/test_pipeline.py has the digests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reprogpt.dvc.digest import cached_files


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository as the current folder, beside folders for the settings of user and system."""
    root = tmp_path / "clone"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    for level in ("GLOBAL", "SYSTEM"):
        monkeypatch.setenv(f"DVC_{level}_CONFIG_DIR", str(tmp_path / level))
        (tmp_path / level).mkdir()
    subprocess.run(["git", "init", "-q"], check=True)
    dvc("init", "-q")
    return root


def dvc(*arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_cache_is_where_dvc_says_whatever_sets_it(repository: Path) -> None:
    """Each setting goes before those set until then; DVC itself writes them, and is asked."""
    places = []
    for level, folder in [
        ("", ""),
        ("--system", "/system"),
        ("--global", "~/a cache"),
        ("--project", "../beside"),
        ("--local", "here # and there"),
    ]:
        if folder:
            dvc("cache", "dir", level, folder)
            dvc("remote", "add", level, "storage", "s3://bucket/dir")
        places.append(os.path.normpath(cached_files()))
        assert places[-1] == os.path.normpath(Path(dvc("cache", "dir"), "files/md5"))
    assert len(set(places)) == 5


@pytest.mark.parametrize("settings", [b"dir = \xff", b"[cache", b"cache = 1", b"[cache]\ndir = a, b"])
def test_settings_that_dvc_refuses_count_as_none(repository: Path, settings: bytes) -> None:
    (repository / ".dvc/config.local").write_bytes(settings)
    assert cached_files() == repository / ".dvc/cache/files/md5"
