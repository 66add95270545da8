"""The sandbox of verify: a clone that nothing leads out of, and that leaves nothing behind."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from reprogpt.errors import PipelineError
from reprogpt.runs import sandbox
from reprogpt.runs.sandbox import commit_clone, sandbox_clone, sandbox_env
from tests.git import git


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file; temporary folders are made in another one, which is returned."""
    (tmp_path / "here" / "sub").mkdir(parents=True)
    (tmp_path / "here" / "sub" / "a.txt").write_text("a", "utf-8")
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_too_little_disk_space_is_refused_before_anything_is_copied(folder: Path) -> None:
    too_much = shutil.disk_usage(folder).free + 10**12
    with pytest.raises(PipelineError, match="set TMPDIR"), sandbox_clone(["sub/a.txt"], needed_bytes=too_much):
        pass
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, PipelineError])
def test_the_clone_is_a_repository_with_the_files_and_is_gone_afterwards(
    folder: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), sandbox_clone(["sub/a.txt"], needed_bytes=0) as clone:
        assert (clone / "sub/a.txt").read_text("utf-8") == "a"
        assert clone.is_relative_to(folder)
        listed = subprocess.run(["git", "ls-files"], cwd=clone, capture_output=True, text=True, check=True).stdout
        assert "sub/a.txt" in listed
        raise error
    assert list(folder.iterdir()) == []


def test_a_commit_is_cloned_as_it_was_though_edited_since_and_in_no_branch(folder: Path) -> None:
    git("init", "-q")
    git("add", "--all")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD")
    Path("sub/a.txt").write_text("edited", "utf-8")
    git("commit", "-qa", "--amend", "-m", "other")
    with commit_clone(commit, needed_bytes=0) as clone:
        assert (clone / "sub/a.txt").read_text("utf-8") == "a"
        assert git("rev-parse", "HEAD", folder=clone) == commit
        assert "dir = cache" in (clone / ".dvc/config.local").read_text("utf-8")
    assert list(folder.iterdir()) == []
    git("clone", "-q", "--depth", "1", Path.cwd().as_uri(), str(folder / "shallow"))
    os.chdir(folder / "shallow")
    with commit_clone(git("rev-parse", "HEAD"), needed_bytes=0) as clone:
        assert (clone / "sub/a.txt").read_text("utf-8") == "edited"


def test_nothing_in_the_environment_leads_out_of_the_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outward = {"DVC_ROOT": "/r", "DVC_EXP_NAME": "e", "GIT_DIR": "/g", "MLFLOW_TRACKING_URI": "http://secret@h"}
    for name, value in {**outward, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    found = sandbox_env(tmp_path / "clone")
    assert not set(outward.values()) & set(found.values())
    assert found["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path / 'clone' / 'mlflow.db'}"
    assert found["DVC_SITE_CACHE_DIR"].startswith(str(tmp_path))
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert found["OMP_NUM_THREADS"] == "1"


def test_all_processes_of_a_rerun_are_killed_together(tmp_path: Path) -> None:
    """DVC does not end its stage when it ends itself."""
    beat = tmp_path / "beat"
    script = f"while true; do date >> {beat}; sleep 0.02; done"
    process = subprocess.Popen(["sh", "-c", f"sh -c '{script}' & sleep 60"], process_group=0)
    while not beat.exists():
        time.sleep(0.02)
    sandbox._kill_group(process, patience_seconds=1)
    size = beat.stat().st_size
    time.sleep(0.2)
    assert process.returncode is not None
    assert beat.stat().st_size == size
