"""Revisions of the project: the workspace, git commits and DVC experiments, with their files and digests."""

import json
import re
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from reprogpt.dvc.digest import cached_files, content_md5, dvc_md5, folder_md5
from reprogpt.dvc.git import git, git_bytes
from reprogpt.dvc.lock import from_root, recorded_inputs, recorded_outs
from reprogpt.dvc.pipeline import run_key_of
from reprogpt.errors import PipelineError
from reprogpt.files import parse_json
from reprogpt.params.loader import DVC_FILE, LOCK_FILE, PARAMS_FILE, parse_mapping
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
        """The stages that dvc.lock records, with paths from the repository's root; {} without a dvc.lock.

        A foreach or matrix stage of dvc.yaml has an entry `stage@item` for each of its items.
        """
        if self.read(str(LOCK_FILE)) is None:
            return {}
        entries = dict(self._mapping(LOCK_FILE).get("stages", {}))
        definitions = self.stages if self.read(str(DVC_FILE)) is not None else {}
        for name in entries:
            definition = definitions.get(name.partition("@")[0], {})
            if wdir := definition.get("do", definition).get("wdir"):
                entries[name] = from_root(entries[name], wdir)
        return entries

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
    def lock_key(self) -> str | None:
        """The run key of train's inputs in dvc.lock; None if train is not there."""
        entry = self.lock.get("train")
        return run_key_of(recorded_inputs(entry)) if entry else None

    @property
    def summary_key(self) -> str | None:
        """The run key in data/metrics/train.json; None if there is none."""
        return next(iter(self.read_json(str(TRAIN_SUMMARY)).get("run_key", [])), None)

    def read_json(self, path: str) -> dict[str, Any]:
        """A JSON object of the project; {} if it does not exist or is not readable."""
        with suppress(ValueError):
            return parse_json(self.read(path) or b"")
        return {}

    def _mapping(self, path: Path) -> dict[str, Any]:
        content = self.read(str(path))
        if content is None:
            raise PipelineError(f"{self.name} has no {path}; run this at the root of a clone of the pipeline")
        return parse_mapping(content, f"{path} of {self.name}")


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
            return content_md5(content)
        listed = git("ls-tree", "-r", "-z", "--name-only", self.commit, f"{path}/")
        if listed:
            files = {name.removeprefix(f"{path}/"): self.read(name) or b"" for name in listed.split("\0") if name}
            return folder_md5({name: content_md5(content) for name, content in files.items()})
        recorded = self.recorded_outs.get(path)
        return recorded if recorded and _is_cached(recorded) else None


def _is_cached(digest: str) -> bool:
    """Whether DVC's cache has the file or folder of this digest, undamaged."""
    path = cached_files() / digest[:2] / digest[2:]
    if not path.is_file() or dvc_md5(path) != digest.removesuffix(".dir"):
        return False
    members = json.loads(path.read_bytes()) if digest.endswith(".dir") else []
    return all(_is_cached(member["md5"]) for member in members)


def list_experiments() -> dict[str, Commit]:
    """DVC's experiments by name, newest first; of several with the same name, the newest."""
    listed = git("for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps") or ""
    experiments: dict[str, Commit] = {}
    # Other refs under refs/exps are DVC's bookkeeping.
    for commit, name in re.findall(r"(?m)^([0-9a-f]+) refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(.+)$", listed):
        experiments.setdefault(name, Commit(commit, f"DVC experiment {name}", name))
    return experiments


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
    everywhere = ("HEAD", "--branches", "--tags", "--remotes")
    hashes = git("log", *everywhere, f"-S{run_key}", "--format=%H", "--", str(TRAIN_SUMMARY)) or ""
    commits = [Commit(commit, f"commit {commit}") for commit in hashes.split()]
    return [commit for commit in commits if commit.summary_key == run_key]
