"""The states of the project that a lineage can be read from: the workspace, and what git holds of other times."""

import hashlib
import json
import re
import subprocess
import sys
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from reprogpt.dvc_files import LOCK_FILE, dvc_md5, recorded_outs
from reprogpt.errors import PipelineError
from reprogpt.params.loader import DVC_FILE, PARAMS_FILE
from reprogpt.tracking.git import git, git_bytes

SUMMARY = "data/metrics/train.json"


class State(ABC):
    """The project's files at one moment, by paths relative to the repository's root.

    name: for a person. experiment: the DVC experiment that it is, "" if it is none.
    """

    name: str
    experiment: str = ""

    @abstractmethod
    def read(self, path: str) -> bytes | None:
        """A file's bytes; None where it is not there."""

    @abstractmethod
    def digest(self, path: str) -> str | None:
        """What dvc.lock would record for the file or folder as it is; None where it is not there."""

    @cached_property
    def lock(self) -> dict[str, Any]:
        """The stages that dvc.lock records; {} without a dvc.lock."""
        there = self.read(str(LOCK_FILE)) is not None
        return dict(self._mapping(LOCK_FILE).get("stages", {})) if there else {}

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
        """The run key in data/metrics/train.json; None where there is none."""
        recorded = self.read_json(SUMMARY).get("run_key")
        return next(iter(recorded), None) if isinstance(recorded, list) else recorded  # in older commits it is alone

    def read_json(self, path: str) -> dict[str, Any]:
        """What a JSON file of ours holds; {} where it is not there or not readable."""
        try:
            values = json.loads(self.read(path) or b"{}")
        except ValueError:
            return {}
        return values if isinstance(values, dict) else {}

    def _mapping(self, path: Path) -> dict[str, Any]:
        content = self.read(str(path))
        if content is None:
            raise PipelineError(f"{self.name} has no {path}; run this at the root of a clone of the pipeline")
        # YAML 1.2, as DVC writes it: to a YAML 1.1 reader, its `1e-05` is a string.
        values = YAML(typ="safe", pure=True).load(content)
        if not isinstance(values, dict):
            raise PipelineError(f"{path} of {self.name} holds no `key: value` lines")
        return values


class Workspace(State):
    """The current folder."""

    name = "the workspace"

    def read(self, path: str) -> bytes | None:
        """See State."""
        return Path(path).read_bytes() if Path(path).is_file() else None

    def digest(self, path: str) -> str | None:
        """See State."""
        return dvc_md5(Path(path)) if Path(path).exists() else None


class Revision(State):
    """A commit: files from git, and from DVC's cache those that git does not keep."""

    def __init__(self, commit: str, name: str, experiment: str = "") -> None:
        self.commit, self.name, self.experiment = commit, name, experiment

    def read(self, path: str) -> bytes | None:
        """See State; what lies in DVC's cache alone is None here."""
        return git_bytes("cat-file", "blob", f"{self.commit}:{path}")

    def digest(self, path: str) -> str | None:
        """See State; a file in DVC's cache counts as there if its bytes are what its name says."""
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
        # Asked of DVC: a setting of the repository, the person or the machine may have moved it.
        done = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True)
        return Path(done.stdout.strip()) if done.returncode == 0 else Path(".dvc/cache")


def experiments() -> dict[str, Revision]:
    """DVC's experiments by name, newest first; of several with one name, on different commits, the newest."""
    listed = git("for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps") or ""
    found: dict[str, Revision] = {}
    for line in listed.splitlines():
        # Whatever else is under refs/exps is DVC's own bookkeeping.
        match = re.fullmatch(r"([0-9a-f]+) refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(.+)", line)
        if match:
            found.setdefault(match[2], Revision(match[1], f"DVC experiment {match[2]}", match[2]))
    return found


def resolve_commit(what: str) -> Revision | None:
    """The commit that git understands `what` as; None if it does not, or has no such commit here."""
    commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{what}^{{commit}}")
    return Revision(commit, f"commit {commit}") if commit else None


def commits_with_run_key(run_key: str) -> list[Revision]:
    """Commits of branches, tags and HEAD that came to hold the results of this run key, newest first."""
    commits = git("log", "HEAD", "--branches", "--tags", "--remotes", f"-S{run_key}", "--format=%H", "--", SUMMARY)
    found = [Revision(commit, f"commit {commit}") for commit in (commits or "").split()]
    return [revision for revision in found if revision.summary_key == run_key]


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
