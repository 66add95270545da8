"""`reprogpt verify [--stage NAME]`: rerun the recorded stages and compare the bits."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from reprogpt.cli.command import Command
from reprogpt.dvc.digest import dvc_md5, files_in
from reprogpt.dvc.git import git
from reprogpt.dvc.pipeline import out_paths
from reprogpt.dvc.revisions import Revision, Workspace
from reprogpt.errors import PipelineError
from reprogpt.files import file_digest
from reprogpt.messages import print_message
from reprogpt.numerics.device import set_up_numerics
from reprogpt.paths import MODEL, RAW_TEXT, SOURCE
from reprogpt.runs.compare import Change
from reprogpt.runs.find import MODEL_TAG
from reprogpt.runs.lineage import lock_key
from reprogpt.runs.sandbox import rerun_stages, sandbox_clone, sandbox_store_uri
from reprogpt.runs.verify import (
    SAME,
    OutComparison,
    RunEnvironments,
    conclusion,
    depended_on,
    explanation,
    obstacles,
    origins,
    survived,
    table,
)
from reprogpt.tracking.log.environment import environment_tags
from reprogpt.tracking.store.client import search_runs
from reprogpt.tracking.store.tracked_run import TrackedRun

STAGES = ("fetch", "split", "tokenize", "train", "evaluate", "plot")
PINS = Path("requirements.lock")
START_FILES = ("config.json", "model.safetensors")
NUM_COPIES = 3  # of each out: in place, in the clone's DVC cache, and the checkpoint in its MLflow store


@click.command(cls=Command)
@click.option(
    "--stage",
    metavar="NAME",
    type=click.Choice(STAGES),
    help=f"Rerun only this stage, from the recorded data of the stages before it: {', '.join(STAGES)}.",
)
def verify(stage: str | None) -> int:
    """Rerun what dvc.lock records in a temporary clone, and compare every out with the recorded digest.

    The clone is removed afterwards; workspace, DVC cache and MLflow store are not changed. If an out differs, the
    command names the first stage that differs, and what explains it: differences in text, environment and versions.
    The table goes to standard output, the output of the stages to standard error.

    \b
    Exit codes:
      0  every out is identical to the bit
      1  an out differs
      2  not rerun: code, parameters or data are not the recorded ones, there
         is no room in the temporary folder (TMPDIR), or a stage fails

    \b
    Examples:
      reprogpt verify                      takes as long as `dvc repro --force`
      reprogpt verify --stage tokenize     one stage
    """
    workspace = Workspace()
    if not workspace.lock:
        raise PipelineError("the workspace has no dvc.lock, so no run is recorded here; `dvc repro` makes one")
    stages = [stage] if stage else list(workspace.stages)
    _require_recorded_state(workspace, stages, single=stage is not None)
    recorded = _recorded_training(workspace)
    reuses_text = str(RAW_TEXT) in _outs(workspace, stages) and _is_recorded_text(workspace)
    files = _files_to_copy(workspace, stages)
    if reuses_text:
        files.append(str(RAW_TEXT))
    with sandbox_clone(files, needed_bytes=_needed_bytes(workspace, stages)) as clone:
        print_message(f"rerunning {', '.join(stages)} in {clone}, removed afterwards\n")
        rerun_stages(clone, stage)
        compared = _compare(workspace, stages, clone)
        environments = RunEnvironments(
            recorded,
            _present_environment(workspace, clone, stages),
            _unpinned_versions(),
            _corpus_change(workspace, clone),
        )
    is_same = all(comparison.status == SAME for comparison in compared)
    if is_same:
        remarks = survived(stages, environments)
    else:
        remarks = explanation(origins(compared, workspace.stages), environments)
    lines = table(compared)
    if remarks:
        lines += ["", *remarks]
    lines.append("")
    if reuses_text:
        lines.append(f"{RAW_TEXT} was copied from the workspace, where it has corpus_sha256; it was not downloaded")
    print("\n".join([*lines, conclusion(compared)]))
    return 0 if is_same else 1


def _compare(workspace: Revision, stages: Sequence[str], clone: Path) -> list[OutComparison]:
    """Every recorded out of these stages with the clone's digest."""
    found = []
    for stage in stages:
        for out in workspace.lock[stage].get("outs", []):
            path = clone / out["path"]
            found.append(OutComparison(stage, out["path"], out["md5"], dvc_md5(path) if path.exists() else None))
    return found


def _require_recorded_state(workspace: Revision, stages: Sequence[str], *, single: bool) -> None:
    """Raise PipelineError unless code, parameters and data are those that dvc.lock records for these stages."""
    found = obstacles(workspace.lock, workspace.stages, workspace.params, cache(workspace.digest), stages)
    if not found:
        return
    lines = [f"  {what}  ({', '.join(stages)})" for what, stages in found.items()]
    data = ", and\n`dvc checkout` for what other stages made" if single else ""
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
    return [path for path in paths if Path(path).is_file() and not any(_is_in(path, out) for out in made)]


def _start_files(workspace: Revision, stages: Sequence[str]) -> list[str]:
    """The files of init_from if it is a folder in the repository, which is not among train's deps."""
    folder = Path(workspace.params.get("init_from", ""))
    is_needed = "train" in stages and folder != Path() and not folder.is_absolute()
    return [path.as_posix() for name in START_FILES if (path := folder / name).is_file()] if is_needed else []


def _is_in(path: str, out: str) -> bool:
    return path == out or path.startswith(f"{out}/")


def _outs(workspace: Revision, stages: Sequence[str]) -> set[str]:
    return {path for stage in stages for path in out_paths(workspace.stages[stage])}


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


def _recorded_training(workspace: Revision) -> dict[str, str] | None:
    """Tags of the newest MLflow run that trained the weights in dvc.lock; None if there is none."""
    key, weights = lock_key(workspace), workspace.recorded_outs.get(str(MODEL))
    return _tags([run for run in search_runs() if run.tags.get(MODEL_TAG) == weights], key)


def _tags(runs: Sequence[TrackedRun], key: str | None) -> dict[str, str] | None:
    return next((run.tags for run in runs if key is not None and run.tags.get("run_key") == key), None)


def _present_environment(workspace: Revision, clone: Path, stages: Sequence[str]) -> dict[str, str]:
    """Tags of the rerun's training; if train was not rerun, the tags that it would have."""
    with _store_of(clone):
        tags = _tags(search_runs(), lock_key(workspace))
    if tags is not None:
        return tags
    # Stages that don't depend on the device must not fail where this machine lacks it.
    arithmetic = {"device": "cpu", "precision": "fp32", "matmul": "torch"}
    if "device" in depended_on(stages):
        arithmetic = {key: workspace.params[key] for key in arithmetic}
    return environment_tags(set_up_numerics(**arithmetic))


@contextmanager
def _store_of(clone: Path) -> Iterator[None]:
    """While the block runs, search_runs() reads the clone's store."""
    before = dict(os.environ)
    os.environ.update({"MLFLOW_TRACKING_URI": sandbox_store_uri(clone), "DVC_ROOT": str(clone)})
    try:
        yield
    finally:
        for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


def _unpinned_versions() -> list[Change]:
    """Packages whose installed version differs from requirements.lock.

    Packages that are not installed are left out: a CPU build of torch needs no CUDA, for example.
    """
    pinned = re.findall(r"^([\w.-]+)==([^\s;]+)", PINS.read_text("utf-8"), flags=re.MULTILINE)
    found = []
    for name, wanted in pinned:
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        if installed.partition("+")[0] != wanted.partition("+")[0]:
            found.append(Change(name, wanted, installed))
    return found


def _corpus_change(workspace: Revision, clone: Path) -> Change | None:
    """The corpus of the recorded run and of the rerun, if they differ; None if they don't or it is not known."""
    recorded = workspace.digest(str(SOURCE)) == workspace.recorded_outs.get(str(SOURCE))
    then = _describe(workspace.read_json(str(SOURCE))) if recorded else None
    path = clone / SOURCE
    now = _describe(json.loads(path.read_text("utf-8"))) if path.is_file() else None
    return Change("corpus", then, now) if now != then and now is not None else None


def _describe(source: dict[str, Any]) -> str | None:
    return f"{source.get('url') or source.get('path')} (sha256 {str(source['sha256'])[:12]})" if source else None
