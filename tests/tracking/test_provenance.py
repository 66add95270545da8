"""Where a run comes from: what counts as dirty, and the patch that says how."""

import subprocess
from pathlib import Path

import pytest

from reprogpt.tracking.provenance import git_patch, git_tags

DVC_YAML = "stages:\n  train:\n    cmd: c\n    outs: [data/model]\n    metrics: [data/train.json]\n"
FILES = {
    "dvc.yaml": DVC_YAML,
    "params.yaml": "seed: 1\n",
    "dvc.lock": "a\n",
    "data/train.json": "1\n",
    "code.py": "1\n",
}


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t.invalid")
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with everything committed."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    git("init", "-q")
    git("add", "--all")
    git("commit", "-qm", "all")
    return tmp_path


def test_a_clean_commit_has_no_patch(repository: Path) -> None:
    assert git_tags()["commit"] == git("rev-parse", "HEAD").strip()
    assert (git_tags()["dirty"], git_patch()) == ("false", b"")


@pytest.mark.parametrize("name", ["params.yaml", "dvc.lock", "data/train.json", "untracked.py"])
def test_what_is_recorded_by_value_or_not_tracked_makes_nothing_dirty(repository: Path, name: str) -> None:
    (repository / name).write_text("changed")
    assert (git_tags()["dirty"], git_patch()) == ("false", b"")


@pytest.mark.parametrize("staged", [False, True])
def test_the_patch_makes_the_commit_what_was_run(repository: Path, staged: bool) -> None:
    (repository / "code.py").write_bytes(b"2\r\n\xff")
    (repository / "dvc.lock").write_text("b\n")
    if staged:
        git("add", "code.py")
    patch = git_patch()
    assert git_tags()["dirty"] == "true" and patch
    git("reset", "-q", "--hard")
    (repository.parent / "patch").write_bytes(patch)
    git("apply", str(repository.parent / "patch"))
    assert (repository / "code.py").read_bytes() == b"2\r\n\xff"
    assert (repository / "dvc.lock").read_text() == "a\n"


def test_outside_a_repository_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / ".git").rename(tmp_path / "away")
    assert git_tags() == {}
    assert git_patch() is None
