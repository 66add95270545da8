"""Where a run comes from: what counts as dirty."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reprogpt.tracking.log.provenance import git_tags, user_tags
from reprogpt.tracking.log.training import _warn_without_commit
from tests.git import git

FILES = {
    "dvc.yaml": "stages: {train: {deps: [src/helper.py, stages/train.py]}}\n",
    "params.yaml": "seed: 1\n",
    "dvc.lock": "a\n",
    "README.md": "a\n",
    "stages/train.py": "import helper\n",
    "src/helper.py": "1\n",
}


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


@pytest.mark.parametrize("name", ["params.yaml", "dvc.lock", "README.md", "untracked.py", ".env"])
def test_what_is_no_code_of_the_stages_makes_nothing_dirty(repository: Path, name: str) -> None:
    (repository / name).write_text("changed")
    assert git_tags()["commit"] == git("rev-parse", "HEAD")
    assert git_tags()["dirty"] == "false"


def test_an_edit_of_the_same_length_and_time_is_dirty(repository: Path) -> None:
    """As of an experiment's copy of the workspace, written and edited in the same second."""
    path = repository / "src/helper.py"
    git("config", "core.trustctime", "false")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    git("update-index", "--refresh")
    with path.open("r+") as file:
        file.write("2")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    assert git("status", "--porcelain") == ""  # git's own answer
    assert git_tags()["dirty"] == "true"


def test_outside_a_repository_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / ".git").rename(tmp_path / "away")
    assert git_tags() == {}


@pytest.mark.parametrize(
    ("break_git", "words"),
    [
        (lambda patch: patch.setenv("PATH", ""), ["git can't be started: No such file or directory"]),
        # As of a checkout that another user owns.
        (
            lambda patch: patch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1"),
            ["detected dubious ownership in repository at", "\n      git config --global --add safe.directory "],
        ),
        (lambda _: Path(".git").rename("away"), ["not a git repository"]),
    ],
    ids=["no git", "another owner", "no repository"],
)
def test_a_training_says_why_it_has_no_commit(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    break_git: Callable[[pytest.MonkeyPatch], object],
    words: list[str],
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(Path.cwd().parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # where safe.directory may allow all
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    _warn_without_commit()
    assert capsys.readouterr().err == ""
    break_git(monkeypatch)
    _warn_without_commit()
    printed = capsys.readouterr().err
    assert "neither `commit` nor `dirty`" in printed
    assert [word for word in words if word not in printed] == []


def test_the_user_is_recorded_where_the_system_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "yamada")
    assert user_tags() == {"mlflow.user": "yamada"}
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)  # docker run -u
    assert user_tags() == {}
