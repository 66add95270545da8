"""Where a run comes from: commit, DVC experiment and corpus."""

import getpass
import json
import os
from pathlib import Path
from typing import Any

from reprogpt.dvc.code_patch import code_patch
from reprogpt.dvc.digest import dvc_md5
from reprogpt.dvc.git import git
from reprogpt.dvc.pipeline import run_key_of, stage_definition
from reprogpt.paths import SOURCE

MLFLOW_USER = "mlflow.user"
TRAIN_CODE = "train_code"  # tag: 32 hex digits that identify the code of the training


def code_tags() -> dict[str, str]:
    """TRAIN_CODE, of the source files among train's deps: commits that change other files leave it as it is."""
    code = [dep for dep in stage_definition("train").get("deps", []) if dep.startswith(("src/", "stages/"))]
    return {TRAIN_CODE: run_key_of({dep: dvc_md5(Path(dep)) for dep in code})}


def git_tags() -> dict[str, str]:
    """commit and dirty ("true" or "false"), {} outside a git repository.

    dirty is about the stages' code: parameters, results and texts are recorded by value.
    """
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {}
    patch = code_patch()
    return {
        "commit": commit,
        "dirty": "true" if patch is None or patch.paths else "false",
        "mlflow.source.git.commit": commit,
    }


def user_tags() -> dict[str, str]:
    """Who runs this, in MLflow's own tag; {} where the system has no name for the user, as in some containers."""
    try:
        return {MLFLOW_USER: getpass.getuser()}
    except (KeyError, OSError):
        return {}


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
