"""`reprogpt verify [--stage NAME]`: whether the recorded run gives the same bits again."""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from reprogpt.compare import Change
from reprogpt.dvc_files import dvc_md5, out_paths
from reprogpt.errors import PipelineError
from reprogpt.files import file_digest
from reprogpt.lineage.report import MODEL, MODEL_TAG, lock_key
from reprogpt.lineage.revisions import State, Workspace
from reprogpt.numerics.device import set_up_numerics
from reprogpt.tracking.environment import environment_tags
from reprogpt.tracking.git import git
from reprogpt.tracking.runs import TrackedRun
from reprogpt.tracking.store import search_runs
from reprogpt.verify.report import (
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
from reprogpt.verify.sandbox import repeat, sandbox_clone, sandbox_store_uri

RAW, SOURCE = "data/corpus/raw.txt", "data/corpus/source.json"
PINS = Path("requirements.lock")
START_FILES = ("config.json", "model.safetensors")
NUM_COPIES = 3  # of each out: in place, in the clone's DVC cache, and the checkpoint in its MLflow store


def verify(stage: str | None) -> int:
    """Repeat the stage that dvc.lock records, or all of them for None, in a temporary clone, and print what
    became of each out: 0 if all are the same, else 1.

    Raises PipelineError where it can't be tried: what is here is not what was run, no room, a stage that fails.
    """
    workspace = Workspace()
    if not workspace.lock:
        raise PipelineError("the workspace has no dvc.lock, so no run is recorded here; `dvc repro` makes one")
    repeated = [stage] if stage else list(workspace.stages)
    _refuse_another_run(workspace, repeated, single=stage is not None)
    recorded = _recorded_training(workspace)
    kept = RAW in _outs(workspace, repeated) and _text_would_be_kept(workspace)
    paths = [*_files_to_copy(workspace, repeated), *([RAW] if kept else [])]
    with sandbox_clone(paths, needed_bytes=_needed_bytes(workspace, repeated)) as clone:
        print(f"repeating {', '.join(repeated)} in {clone}, removed afterwards\n", file=sys.stderr, flush=True)
        repeat(clone, stage)
        compared = _compare(workspace, repeated, clone)
        circumstances = RunEnvironments(
            recorded, _present_environment(workspace, clone, repeated), _other_versions(), _other_text(workspace, clone)
        )
    same = all(one.status == SAME for one in compared)
    more = (
        survived(repeated, circumstances) if same else explanation(origins(compared, workspace.stages), circumstances)
    )
    kept_words = [f"{RAW} is a copy of the one here, which has corpus_sha256; it was not downloaded"] if kept else []
    print("\n".join([*table(compared), *([""] if more else []), *more, "", *kept_words, conclusion(compared)]))
    return 0 if same else 1


def _compare(workspace: State, repeated: Sequence[str], clone: Path) -> list[OutComparison]:
    """Every recorded out of the repeated stages, held against what the clone has."""
    found = []
    for stage in repeated:
        for out in workspace.lock[stage].get("outs", []):
            path = clone / out["path"]
            found.append(OutComparison(stage, out["path"], out["md5"], dvc_md5(path) if path.exists() else None))
    return found


def _refuse_another_run(workspace: State, repeated: Sequence[str], *, single: bool) -> None:
    """Raise PipelineError unless code, parameters and data here are what dvc.lock says the stages were run with."""
    found = obstacles(workspace.lock, workspace.stages, workspace.params, cache(workspace.digest), repeated)
    if not found:
        return
    lines = [f"  {what}  ({', '.join(stages)})" for what, stages in found.items()]
    data = ", and\n`dvc checkout` for what other stages made" if single else ""
    raise PipelineError(
        "what dvc.lock records can't be repeated from this workspace, which is not what was run:\n"
        + "\n".join(lines)
        + "\nTo have what was run, `git checkout` a commit in which code, params.yaml and dvc.lock belong together"
        + f"{data};\nto run what is here, and record that instead, `dvc repro`"
    )


def _files_to_copy(workspace: State, repeated: Sequence[str]) -> list[str]:
    """The files that git tracks and those that the stages read, without what the stages make."""
    listed = git("ls-files", "-z")
    if listed is None:
        raise PipelineError("this folder is not in a git repository, so there is nothing to clone; run it in a clone")
    deps = [Path(dep) for stage in repeated for dep in workspace.stages[stage].get("deps", [])]
    read = [file.as_posix() for dep in deps for file in ([dep] if dep.is_file() else dep.rglob("*"))]
    made = _outs(workspace, repeated)
    paths = dict.fromkeys([*filter(None, listed.split("\0")), *read, *_start_files(workspace, repeated)])
    return [path for path in paths if Path(path).is_file() and not any(_is_in(path, out) for out in made)]


def _start_files(workspace: State, repeated: Sequence[str]) -> list[str]:
    """What train reads of a folder in the repository to start from, which is none of its deps; [] if it does not."""
    folder = Path(workspace.params.get("init_from", ""))
    is_read = "train" in repeated and folder != Path() and not folder.is_absolute()
    return [path.as_posix() for name in START_FILES if (path := folder / name).is_file()] if is_read else []


def _is_in(path: str, out: str) -> bool:
    return path == out or path.startswith(f"{out}/")


def _outs(workspace: State, repeated: Sequence[str]) -> set[str]:
    return {path for stage in repeated for path in out_paths(workspace.stages[stage])}


def _text_would_be_kept(workspace: State) -> bool:
    """Whether fetch would take the text that is here for the one asked for, and it is the recorded one."""
    path, wanted = Path(RAW), workspace.params.get("corpus_sha256")
    return workspace.digest(RAW) == workspace.recorded_outs.get(RAW) and path.is_file() and file_digest(path) == wanted


def _needed_bytes(workspace: State, repeated: Sequence[str]) -> int:
    """Room on disk for what the stages make and for what they read of others."""
    entries = [workspace.lock[stage] for stage in repeated]
    made: dict[str, int] = {out["path"]: out.get("size", 0) for entry in entries for out in entry.get("outs", [])}
    read: dict[str, int] = {dep["path"]: dep.get("size", 0) for entry in entries for dep in entry.get("deps", [])}
    start = sum(Path(path).stat().st_size for path in _start_files(workspace, repeated))
    return NUM_COPIES * sum(made.values()) + sum(size for path, size in read.items() if path not in made) + start


def _recorded_training(workspace: State) -> dict[str, str] | None:
    """Tags of the newest MLflow run that trained the weights that dvc.lock records; None if there is none."""
    key, weights = lock_key(workspace), workspace.recorded_outs.get(MODEL)
    return _tags([run for run in search_runs() if run.tags.get(MODEL_TAG) == weights], key)


def _tags(runs: Sequence[TrackedRun], key: str | None) -> dict[str, str] | None:
    return next((run.tags for run in runs if key is not None and run.tags.get("run_key") == key), None)


def _present_environment(workspace: State, clone: Path, repeated: Sequence[str]) -> dict[str, str]:
    """Tags of the training in the clone's own store; where train was not repeated, what they would be."""
    with _store_of(clone):
        tags = _tags(search_runs(), lock_key(workspace))
    if tags is not None:
        return tags
    # Other stages don't mind that this machine lacks the device.
    usual = {"device": "cpu", "precision": "fp32", "matmul": "torch"}
    minded = "device" in depended_on(repeated)
    return environment_tags(set_up_numerics(**{key: workspace.params[key] for key in usual} if minded else usual))


@contextmanager
def _store_of(clone: Path) -> Iterator[None]:
    """Inside, search_runs() reads the clone's store."""
    before = dict(os.environ)
    os.environ.update({"MLFLOW_TRACKING_URI": sandbox_store_uri(clone), "DVC_ROOT": str(clone)})
    try:
        yield
    finally:
        for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


def _other_versions() -> list[Change]:
    """Pins of requirements.lock beside which another version is installed. What is not installed is left out:
    a CPU build of torch, say, needs no CUDA.
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


def _other_text(workspace: State, clone: Path) -> Change | None:
    """The text of the recorded run, if that is known here, and that of the repeat, where they are not the same."""
    recorded = workspace.digest(SOURCE) == workspace.recorded_outs.get(SOURCE)
    then = _describe(workspace.read_json(SOURCE)) if recorded else None
    path = clone / SOURCE
    now = _describe(json.loads(path.read_text("utf-8"))) if path.is_file() else None
    return Change("corpus", then, now) if now != then and now is not None else None


def _describe(source: dict[str, Any]) -> str | None:
    return f"{source.get('url') or source.get('path')} (sha256 {str(source['sha256'])[:12]})" if source else None
