"""Revisions of the project: the workspace, git commits and DVC experiments, with their files and digests."""

import hashlib
import json
import os
import re
import subprocess
import sys
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from reprogpt.dvc.digest import dvc_md5
from reprogpt.dvc.git import git, git_bytes
from reprogpt.dvc.lock import recorded_outs
from reprogpt.errors import PipelineError
from reprogpt.params.loader import DVC_FILE, LOCK_FILE, PARAMS_FILE
from reprogpt.paths import TRAIN_SUMMARY


class Revision(ABC):
    """The project's files at one revision, by paths relative to the repository's root.

    name: for messages. experiment: the DVC experiment's name, "" if it is none.
    """

    name: str
    experiment: str = ""

    @abstractmethod
    def read(self, path: str) -> bytes | None:
        """A file's bytes; None if it does not exist."""

    @abstractmethod
    def digest(self, path: str) -> str | None:
        """The digest that dvc.lock would record for a file or folder; None if it does not exist."""

    @cached_property
    def lock(self) -> dict[str, Any]:
        """The stages that dvc.lock records; {} without a dvc.lock."""
        if self.read(str(LOCK_FILE)) is None:
            return {}
        return dict(self._mapping(LOCK_FILE).get("stages", {}))

    @cached_property
    def stages(self) -> dict[str, Any]:
        """The stages that dvc.yaml defines, in its order. Raises PipelineError if there is no dvc.yaml."""
        return dict(self._mapping(DVC_FILE).get("stages", {}))

    @cached_property
    def params(self) -> dict[str, Any]:
        """params.yaml. Raises PipelineError if there is none."""
        return self._mapping(PARAMS_FILE)

    @cached_property
    def recorded_outs(self) -> dict[str, str]:
        """Path -> digest of every out in dvc.lock."""
        return {path: md5 for entry in self.lock.values() for path, md5 in recorded_outs(entry).items()}

    @property
    def summary_key(self) -> str | None:
        """The run key in data/metrics/train.json; None if there is none."""
        recorded = self.read_json(str(TRAIN_SUMMARY)).get("run_key")
        return next(iter(recorded), None) if isinstance(recorded, list) else recorded  # a string in older commits

    def read_json(self, path: str) -> dict[str, Any]:
        """A JSON object of the project; {} if it does not exist or is not readable."""
        try:
            values = json.loads(self.read(path) or b"{}")
        except ValueError:
            return {}
        return values if isinstance(values, dict) else {}

    def _mapping(self, path: Path) -> dict[str, Any]:
        content = self.read(str(path))
        if content is None:
            raise PipelineError(f"{self.name} has no {path}; run this at the root of a clone of the pipeline")
        # YAML 1.2, as DVC writes it: a YAML 1.1 parser reads its `1e-05` as a string.
        values = YAML(typ="safe", pure=True).load(content)
        if not isinstance(values, dict):
            raise PipelineError(f"{path} of {self.name} holds no `key: value` lines")
        return values


class Workspace(Revision):
    """The current folder."""

    name = "the workspace"

    def read(self, path: str) -> bytes | None:
        """See Revision."""
        return Path(path).read_bytes() if Path(path).is_file() else None

    def digest(self, path: str) -> str | None:
        """See Revision."""
        return dvc_md5(Path(path)) if Path(path).exists() else None


class Commit(Revision):
    """A git commit: files from git, and from DVC's cache those that git does not track."""

    def __init__(self, commit: str, name: str, experiment: str = "") -> None:
        self.commit, self.name, self.experiment = commit, name, experiment

    def read(self, path: str) -> bytes | None:
        """See Revision. None for a file that only DVC's cache has."""
        return git_bytes("cat-file", "blob", f"{self.commit}:{path}")

    def digest(self, path: str) -> str | None:
        """See Revision. A file in DVC's cache exists if its bytes match its name."""
        content = self.read(path)
        if content is not None:
            return _md5(content)
        listed = git("ls-tree", "-r", "-z", "--name-only", self.commit, f"{path}/")
        if listed:
            names = sorted(name.removeprefix(f"{path}/") for name in listed.split("\0") if name)
            files = [{"md5": _md5(self.read(f"{path}/{name}") or b""), "relpath": name} for name in names]
            return _md5(json.dumps(files, sort_keys=True).encode()) + ".dir"
        recorded = self.recorded_outs.get(path)
        return recorded if recorded and self._in_cache(recorded) else None

    def _in_cache(self, digest: str) -> bool:
        path = self._cache / "files" / "md5" / digest[:2] / digest[2:]
        if not path.is_file() or dvc_md5(path) != digest.removesuffix(".dir"):
            return False
        members = json.loads(path.read_text("utf-8")) if digest.endswith(".dir") else []
        return all(self._in_cache(member["md5"]) for member in members)

    @cached_property
    def _cache(self) -> Path:
        # Asked of DVC: a repository, global or system setting may have moved it.
        done = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True)
        return Path(os.fsdecode(done.stdout).strip()) if done.returncode == 0 else Path(".dvc/cache")


def list_experiments() -> dict[str, Commit]:
    """DVC's experiments by name, newest first; of several with the same name, the newest."""
    listed = git("for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps") or ""
    found: dict[str, Commit] = {}
    for line in listed.splitlines():
        # Other refs under refs/exps are DVC's bookkeeping.
        match = re.fullmatch(r"([0-9a-f]+) refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(.+)", line)
        if match:
            found.setdefault(match[2], Commit(match[1], f"DVC experiment {match[2]}", match[2]))
    return found


def queued_experiments() -> list[Commit]:
    """The experiments in DVC's queue that no worker has started, newest first."""
    commits = git("reflog", "show", "--format=%H", "refs/exps/celery/stash") or ""
    return [Commit(commit, f"queued DVC experiment {commit[:7]}") for commit in commits.split()]


def resolve_commit(what: str) -> Commit | None:
    """The commit that git resolves `what` to; None if there is none in this repository."""
    commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{what}^{{commit}}")
    return Commit(commit, f"commit {commit}") if commit else None


def commits_with_run_key(run_key: str) -> list[Commit]:
    """Commits of branches, tags and HEAD that introduced the results of this run key, newest first."""
    commits = git(
        "log", "HEAD", "--branches", "--tags", "--remotes", f"-S{run_key}", "--format=%H", "--", str(TRAIN_SUMMARY)
    )
    found = [Commit(commit, f"commit {commit}") for commit in (commits or "").split()]
    return [revision for revision in found if revision.summary_key == run_key]


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
