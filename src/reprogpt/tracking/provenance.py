"""Where a run comes from: commit, DVC experiment and corpus."""

import json
import os
from typing import Any

from reprogpt.dvc_files import LOCK_FILE, out_paths
from reprogpt.params.loader import DVC_FILE, PARAMS_FILE, read_mapping
from reprogpt.paths import SOURCE
from reprogpt.tracking.git import git, git_bytes


def git_tags() -> dict[str, str]:
    """commit and dirty ("true" or "false"), {} outside a git repository.

    dirty looks at tracked files other than params.yaml, dvc.lock and the pipeline's outs: those are
    recorded by value, and every experiment changes them.
    """
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {}
    status = git("status", "--porcelain", "--untracked-files=no", *_code())
    return {"commit": commit, "dirty": "true" if status else "false", "mlflow.source.git.commit": commit}


def git_patch() -> bytes | None:
    """What git_tags calls dirty, for `git apply` on the commit; empty where nothing is, None outside a repository."""
    return git_bytes("diff", "--binary", "--no-color", "--no-ext-diff", "HEAD", *_code())


def _code() -> list[str]:
    stages = read_mapping(DVC_FILE)["stages"].values()
    recorded = [str(PARAMS_FILE), str(LOCK_FILE), *(path for stage in stages for path in out_paths(stage))]
    return ["--", ".", *(f":(exclude){path}" for path in recorded)]


def experiment_tags() -> dict[str, str]:
    """The DVC experiment's name and the commit it was made from, {} under plain `dvc repro`."""
    names = {"dvc.experiment": "DVC_EXP_NAME", "dvc.baseline": "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[variable] for tag, variable in names.items() if os.environ.get(variable)}


def read_source() -> dict[str, Any]:
    """What fetch wrote of the corpus (url or path, sha256, bytes, characters), {} if there is nothing."""
    try:
        source: dict[str, Any] = json.loads(SOURCE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return source


def corpus_tags(source: dict[str, Any]) -> dict[str, str]:
    """Tags that say which text was trained on."""
    return {f"corpus.{key}": str(source[key]) for key in ("url", "path", "sha256") if key in source}
