"""Revisions in git and DVC's cache, on a repository of a few small files."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reprogpt.dvc.digest import dvc_md5
from reprogpt.dvc.revisions import Commit, Workspace, commits_with_run_key, list_experiments, resolve_commit
from reprogpt.errors import PipelineError
from reprogpt.paths import TRAIN_SUMMARY

KEY, OTHER_KEY = "1" * 32, "2" * 32
FOLDER = {"folder/a/b": "1", "folder/a-b": "2", "folder/é": "3"}


def git(*arguments: str, date: int = 0) -> str:
    """Run git as nobody in particular, at that many seconds after a fixed time."""
    who = {f"GIT_{role}_{part}": "t" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    when = {f"GIT_{role}_DATE": f"@{1_700_000_000 + date} +0000" for role in ("AUTHOR", "COMMITTER")}
    environment = {**os.environ, **who, **when, "GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(["git", *arguments], env=environment, check=True, capture_output=True, text=True).stdout


def commit(*, date: Any = 0, **texts: str) -> str:
    for path, text in texts.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, "utf-8")
    git("add", "--all")
    git("commit", "-qm", "files", "--allow-empty", date=date)
    return git("rev-parse", "HEAD").strip()


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty git repository, as the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    git("init", "-q", "-b", "main")
    return tmp_path


def test_a_revision_has_the_files_of_its_commit_and_not_the_present_ones() -> None:
    first = Commit(commit(**{"a.txt": "old"}), "first")
    commit(**{"a.txt": "new"})
    assert (first.read("a.txt"), first.digest("a.txt")) == (b"old", md5("old"))
    assert Workspace().digest("a.txt") == md5("new")
    assert first.read("absent") is None and first.digest("absent") is None
    assert Workspace().read("absent") is None and Workspace().digest("absent") is None


def test_a_folder_has_the_digest_that_dvc_gives_it() -> None:
    revision = Commit(commit(**FOLDER), "folder")
    assert revision.digest("folder") == dvc_md5(Path("folder")) == Workspace().digest("folder")


def cached(folder: Path, text: str, name: str | None = None) -> str:
    digest = name or md5(text)
    path = folder / "files/md5" / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return digest


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Commit, str]:
    """A cache outside the usual place, a revision whose out model it holds, and the digest of a file of model."""
    cache = tmp_path / "elsewhere"
    member = cached(cache, "weights")
    listing = json.dumps([{"md5": member, "relpath": "model.safetensors"}])
    model = cached(cache, listing, md5(listing) + ".dir")
    lock = f"stages:\n  train: {{cmd: fit, outs: [{{path: model, md5: {model}}}, {{path: t, md5: {member}}}]}}\n"
    (tmp_path / ".gitignore").write_text("elsewhere\n", "utf-8")
    for arguments in (["init", "-q"], ["config", "cache.dir", str(cache)]):
        subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True)
    return cache, Commit(commit(**{"dvc.lock": lock}), "kept"), member


def test_a_file_that_git_does_not_track_exists_if_dvcs_cache_has_it_undamaged(kept: tuple[Path, Commit, str]) -> None:
    cache, revision, member = kept
    outs = revision.recorded_outs
    assert (revision.digest("model"), revision.digest("t")) == (outs["model"], outs["t"])
    path = cache / "files/md5" / member[:2] / member[2:]
    path.write_text("altered", "utf-8")
    assert (revision.digest("model"), revision.digest("t")) == (None, None)
    path.unlink()
    assert (revision.digest("model"), revision.digest("t")) == (None, None)


def test_a_lock_is_read_as_yaml_1_2() -> None:
    lock = "stages: {train: {params: {params.yaml: {peak_lr: 1e-05}}}}"
    revision = Commit(commit(**{"dvc.lock": lock}), "lock")
    assert revision.lock["train"]["params"]["params.yaml"] == {"peak_lr": 0.00001}
    assert Workspace().lock == revision.lock


def test_a_revision_without_its_files_names_what_it_lacks() -> None:
    revision = Commit(commit(), "commit of nothing")
    assert revision.lock == {}
    assert revision.summary_key is None
    with pytest.raises(PipelineError, match=r"commit of nothing has no dvc\.yaml"):
        _ = revision.stages
    Path("params.yaml").write_text("- a list", "utf-8")
    with pytest.raises(PipelineError, match=r"params\.yaml of the workspace must hold"):
        _ = Workspace().params


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}"])
def test_a_summary_without_a_run_key_has_none(text: str) -> None:
    assert Commit(commit(**{str(TRAIN_SUMMARY): text}), "summary").summary_key is None


def test_experiments_are_the_newest_of_their_names_without_dvcs_own_refs() -> None:
    old, new = commit(date=1), commit(date=2)
    baseline = f"refs/exps/ab/{'c' * 38}"
    for ref, target in {
        f"{baseline}/one": old,
        f"refs/exps/ab/{'d' * 38}/one": new,
        f"{baseline}/two": old,
        "refs/exps/exec/EXEC_HEAD": new,
        "refs/exps/stash": new,
        "refs/exps/celery/stash": new,
    }.items():
        git("update-ref", ref, target)
    found = {name: (revision.commit, revision.experiment) for name, revision in list_experiments().items()}
    assert found == {"one": (new, "one"), "two": (old, "two")}


def test_a_commit_is_found_by_its_digits_branch_or_tag() -> None:
    first = commit(date=1)
    git("tag", "v1")
    second = commit(date=2)
    names = {what: revision.commit for what in (first[:8], "v1", "main", "HEAD") if (revision := resolve_commit(what))}
    assert names == {first[:8]: first, "v1": first, "main": second, "HEAD": second}
    assert [resolve_commit(what) for what in ("unknown", "", "0" * 40, "--all")] == [None] * 4


def test_commits_with_a_run_key_come_newest_first_without_those_that_dropped_it() -> None:
    commit(date=1)
    first = commit(date=2, **{str(TRAIN_SUMMARY): json.dumps({"run_key": [KEY]})})
    commit(date=3, **{str(TRAIN_SUMMARY): json.dumps({"run_key": [OTHER_KEY]})})
    again = commit(date=4, **{str(TRAIN_SUMMARY): json.dumps({"run_key": [KEY]})})
    commit(date=5, **{str(TRAIN_SUMMARY): json.dumps({"run_key": [OTHER_KEY]})})
    assert [revision.commit for revision in commits_with_run_key(KEY)] == [again, first]
    assert commits_with_run_key("3" * 32) == []


def test_a_commit_off_the_branches_is_found_from_head() -> None:
    commit(date=1)
    git("checkout", "-q", "--detach")
    detached = commit(date=2, **{str(TRAIN_SUMMARY): json.dumps({"run_key": [KEY]})})
    assert [revision.commit for revision in commits_with_run_key(KEY)] == [detached]
