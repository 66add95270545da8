"""Reruns the recorded stages in a temporary clone, compares the bits, and collects what can explain a difference."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from reprogpt.dvc.digest import dvc_md5, files_in
from reprogpt.dvc.git import git
from reprogpt.dvc.lock import recorded_outs
from reprogpt.dvc.pipeline import out_paths
from reprogpt.dvc.revisions import Revision, Workspace
from reprogpt.errors import PipelineError
from reprogpt.files import file_digest, read_json_or_empty
from reprogpt.numerics.device import Numerics, chooses_portable, set_up_numerics
from reprogpt.paths import MODEL, RAW_TEXT, SOURCE
from reprogpt.runs.compare import Change, changes
from reprogpt.runs.find import MODEL_TAG, require_lock
from reprogpt.runs.lineage import HOLDS, NOT_HERE, UNLISTED, Link, check_links
from reprogpt.runs.sandbox import rerun_stages, sandbox_clone, sandbox_store_uri
from reprogpt.tags import RUN_KEY
from reprogpt.tracking.log.environment import (
    CPU_TAGS,
    ENVIRONMENT_TAGS,
    STAGE_DEPENDENCIES,
    depends_on_cpu,
    environment_tags,
)
from reprogpt.tracking.store.client import search_runs

PINS = Path("requirements.lock")
STAGES = ("fetch", "split", "tokenize", "train", "evaluate", "plot")  # a project may add others, of any kind
START_FILES = ("config.json", "model.safetensors")
NUM_COPIES = 3  # of each out: in place, in the clone's DVC cache, and the checkpoint in its MLflow store


@dataclass(frozen=True)
class RunEnvironments:
    """The environments of the recorded run and of the rerun.

    recorded: tags of the MLflow run that trained the recorded weights; None if there is none in the store.
    here: tags of the rerun. pins: packages whose installed version differs from requirements.lock.
    text: the corpus of the recorded run and of the rerun, described; None if they are the same.
    """

    recorded: Mapping[str, str] | None
    here: Mapping[str, str]
    pins: Sequence[Change] = field(default_factory=list)
    text: Change | None = None

    def changes(self, stages: Iterable[str]) -> list[Change]:
        """The differences between both environments that these stages depend on, the likeliest cause first.

        A pin stands for the recorded version only if the recorded run has no tag for it. The processor is compared
        only if the recorded run has its tags: older runs don't.
        """
        keys = depended_on(stages)
        recorded = self.recorded or {}
        comparable = [key for key in keys if key in recorded or key not in CPU_TAGS]
        if not depends_on_cpu(recorded) and not depends_on_cpu(self.here):
            comparable = [key for key in comparable if key not in CPU_TAGS]
        tags = [] if self.recorded is None else changes(comparable, recorded, self.here)
        pins = [Change(pin.key, f"{pin.a} (pinned)", pin.b) for pin in self.pins if pin.key not in recorded]
        by_key = {change.key.lower(): change for change in [*tags, *pins]}
        return [by_key[key] for key in keys if key in by_key]


@dataclass(frozen=True)
class Rerun:
    """The outs of the rerun stages, by stage: the digest in dvc.lock, and the rerun's (None if it did not make it)."""

    outs: dict[str, list[Link]]
    environments: RunEnvironments
    origins: list[str]  # the stages at which a difference begins

    @property
    def is_same(self) -> bool:
        """Whether all outs have the recorded digests."""
        return all(out.status == HOLDS for outs in self.outs.values() for out in outs)


def depended_on(stages: Iterable[str]) -> list[str]:
    """The tags and packages that the stages depend on, the likeliest cause of a difference first."""
    return list(dict.fromkeys(key for stage in stages for key in STAGE_DEPENDENCIES.get(stage, ENVIRONMENT_TAGS)))


def rerun(stage: str | None) -> Rerun:
    """Rerun the recorded stage, or all of STAGES for None, in a temporary clone. Their output goes to standard error.

    Raises PipelineError if it can't be tried: the workspace is not what was recorded, there is no room, or a stage
    fails.
    """
    workspace = require_lock(Workspace())
    stages = [stage] if stage else [name for name in STAGES if name in workspace.stages]
    _require_recorded_state(workspace, stages)
    recorded = _tags_of_newest({RUN_KEY: workspace.lock_key, MODEL_TAG: workspace.recorded_outs.get(str(MODEL))})
    files = _files_to_copy(workspace, stages)
    if str(RAW_TEXT) in _outs(workspace, stages) and _is_recorded_text(workspace):
        files.append(str(RAW_TEXT))
    with sandbox_clone(files, needed_bytes=_needed_bytes(workspace, stages)) as clone:
        rerun_stages(clone, stages)
        outs = {name: _out_links(clone, workspace.lock[name]) for name in stages}
        environments = RunEnvironments(
            recorded,
            _present_environment(workspace, clone, stages),
            unpinned_versions(PINS.read_text("utf-8")),
            _corpus_change(workspace, clone),
        )
    return Rerun(outs, environments, origins(outs, workspace.stages))


def obstacles(workspace: Revision, stages: Sequence[str]) -> dict[str, list[str]]:
    """What prevents the recorded run of these stages from being rerun, with the stages concerned.

    Files that the rerun makes itself are not checked in the workspace: for them dvc.lock must only be consistent.
    """
    made = _outs(workspace, stages)
    digest = cache(workspace.digest)
    chain = check_links(
        {stage: workspace.lock[stage] for stage in stages if stage in workspace.lock},
        {stage: workspace.stages[stage] for stage in stages},
        workspace.params,
        lambda path: None if path in made else digest(path),
    )
    stages_by_obstacle: dict[str, list[str]] = {}
    for links in chain:
        if links.stage not in workspace.lock:
            stages_by_obstacle.setdefault("not in dvc.lock: it never ran", []).append(links.stage)
        broken = [link for link in links.inputs if link.status != HOLDS]
        broken += [link for link in links.outs if link.recorded is None or link.present == UNLISTED]
        for link in broken:
            stages_by_obstacle.setdefault(_obstacle(link), []).append(links.stage)
    return stages_by_obstacle


def _obstacle(link: Link) -> str:
    if link.status == NOT_HERE:
        return f"{link.what}: not here"
    if link.recorded is None:
        return f"{link.what}: not in dvc.lock"
    if link.what.startswith("dep ") and link.present != UNLISTED:
        return f"{link.what}: other contents than recorded"
    return f"{link.what}: {link.recorded} -> {link.present}"


def origins(outs: Mapping[str, Sequence[Link]], stages: Mapping[str, Any]) -> list[str]:
    """The stages at which a difference begins: an out differs although all inputs are the same.

    outs: as of Rerun. stages: the `stages` of dvc.yaml.
    """
    other = {stage: {out.what for out in links if out.status != HOLDS} for stage, links in outs.items()}
    every = set().union(*other.values())
    return [stage for stage, paths in other.items() if paths and not every & set(stages[stage]["deps"])]


def _require_recorded_state(workspace: Revision, stages: Sequence[str]) -> None:
    """Raise PipelineError unless code, parameters and data are those that dvc.lock records for these stages."""
    lines = [f"  {obstacle}  ({', '.join(names)})" for obstacle, names in obstacles(workspace, stages).items()]
    if not lines:
        return
    data = ", and\n`dvc checkout` for what other stages made" if len(stages) < len(workspace.stages) else ""
    raise PipelineError(
        "the recorded run can't be rerun from this workspace, which differs from what was run:\n"
        + "\n".join(lines)
        + "\nTo restore it, `git checkout` a commit in which code, params.yaml and dvc.lock belong together"
        + f"{data};\nto run and record the present state instead, `dvc repro`"
    )


def _files_to_copy(workspace: Revision, stages: Sequence[str]) -> list[str]:
    """The files that git tracks and those that the stages read, without what the stages make."""
    listed = git("ls-files", "-z")
    if listed is None:
        raise PipelineError("this folder is not in a git repository, so it can't be copied; run this in a clone")
    deps = [Path(dep) for stage in stages for dep in workspace.stages[stage].get("deps", [])]
    read = [file.as_posix() for dep in deps for file in ([dep] if dep.is_file() else files_in(dep))]
    made = _outs(workspace, stages)
    paths = dict.fromkeys([*filter(None, listed.split("\0")), *read, *_start_files(workspace, stages)])
    return [path for path in paths if Path(path).is_file() and not any(Path(path).is_relative_to(out) for out in made)]


def _start_files(workspace: Revision, stages: Sequence[str]) -> list[str]:
    """The files of init_from if it is a folder in the repository, which is not among train's deps."""
    folder = Path(workspace.params.get("init_from", ""))
    is_needed = "train" in stages and folder != Path() and not folder.is_absolute()
    return [path.as_posix() for name in START_FILES if (path := folder / name).is_file()] if is_needed else []


def _outs(workspace: Revision, stages: Sequence[str]) -> set[str]:
    return {path for stage in stages for path in out_paths(workspace.stages[stage])}


def _out_links(clone: Path, entry: Mapping[str, Any]) -> list[Link]:
    """Every out of a stage's dvc.lock entry, with the clone's digest."""
    outs = {path: (md5, clone / path) for path, md5 in recorded_outs(entry).items()}
    return [Link(path, md5, dvc_md5(made) if made.exists() else None) for path, (md5, made) in outs.items()]


def _is_recorded_text(workspace: Revision) -> bool:
    """Whether the workspace's text is the recorded one and has corpus_sha256, so that fetch would keep it."""
    wanted = workspace.params.get("corpus_sha256")
    is_recorded = workspace.digest(str(RAW_TEXT)) == workspace.recorded_outs.get(str(RAW_TEXT))
    return is_recorded and RAW_TEXT.is_file() and file_digest(RAW_TEXT) == wanted


def _needed_bytes(workspace: Revision, stages: Sequence[str]) -> int:
    """Disk space for what the stages make and for what they read from other stages."""
    entries = [workspace.lock[stage] for stage in stages]
    made: dict[str, int] = {out["path"]: out.get("size", 0) for entry in entries for out in entry.get("outs", [])}
    read: dict[str, int] = {dep["path"]: dep.get("size", 0) for entry in entries for dep in entry.get("deps", [])}
    start = sum(Path(path).stat().st_size for path in _start_files(workspace, stages))
    return NUM_COPIES * sum(made.values()) + sum(size for path, size in read.items() if path not in made) + start


def _tags_of_newest(tags: Mapping[str, str | None]) -> dict[str, str] | None:
    """All tags of the newest MLflow run with these; None if there is none."""
    return next((run.tags for run in search_runs() if tags.items() <= run.tags.items()), None)


def _present_environment(workspace: Revision, clone: Path, stages: Sequence[str]) -> dict[str, str]:
    """Tags of the rerun's training; if train was not rerun, the tags that it would have."""
    with store_of(clone):
        tags = _tags_of_newest({RUN_KEY: workspace.lock_key})
    if tags is not None:
        return tags
    # Stages that don't depend on the device must not fail where this machine lacks it.
    arithmetic: dict[str, Any] = {
        "device": "cpu",
        "precision": "fp32",
        "matmul": "torch",
        "numerics": "native",
        "nproc_per_node": 1,
    }
    if "device" in depended_on(stages):
        arithmetic = {key: workspace.params[key] for key in arithmetic}
    if chooses_portable(arithmetic):  # which can't be set up here: torch is loaded without its variables
        return environment_tags(Numerics(torch.device("cpu"), "fp32", "portable"))
    return environment_tags(set_up_numerics(**arithmetic | {"numerics": "native"}))


@contextmanager
def store_of(clone: Path) -> Iterator[None]:
    """While the block runs, search_runs() reads the clone's store."""
    before = dict(os.environ)
    variables = {"MLFLOW_TRACKING_URI": sandbox_store_uri(clone), "DVC_ROOT": str(clone)}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name)
        os.environ.update(before)


def unpinned_versions(pins: str) -> list[Change]:
    """Packages whose installed version differs from these pins, the text of requirements.lock.

    Packages that are not installed are left out: a CPU build of torch needs no CUDA, for example.
    """
    pinned = re.findall(r"^([\w.-]+)==([^\s;]+)", pins, flags=re.MULTILINE)
    unpinned = []
    for name, wanted in pinned:
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        if installed.partition("+")[0] != wanted.partition("+")[0]:
            unpinned.append(Change(name, wanted, installed))
    return unpinned


def _corpus_change(workspace: Revision, clone: Path) -> Change | None:
    """The corpus of the recorded run and of the rerun, if they differ; None if they don't or it is not known."""
    is_recorded = workspace.digest(str(SOURCE)) == workspace.recorded_outs.get(str(SOURCE))
    then = _describe_corpus(workspace.read_json(str(SOURCE))) if is_recorded else None
    now = _describe_corpus(read_json_or_empty(clone / SOURCE))
    return Change("corpus", then, now) if now != then and now is not None else None


def _describe_corpus(source: dict[str, Any]) -> str | None:
    return f"{source.get('url') or source.get('path')} (sha256 {str(source['sha256'])[:12]})" if source else None
