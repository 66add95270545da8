"""Where a run comes from: commit, DVC experiment and corpus."""

import getpass
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reprogpt import tags
from reprogpt.dvc.code_patch import code_patch
from reprogpt.dvc.digest import dvc_md5
from reprogpt.dvc.git import git
from reprogpt.dvc.pipeline import run_key_of, stage_definition


def code_tags() -> dict[str, str]:
    """TRAIN_CODE, from the source files among train's deps: commits that change other files leave it as it is."""
    code = [dep for dep in stage_definition("train").get("deps", []) if dep.startswith(("src/", "stages/"))]
    return {tags.TRAIN_CODE: run_key_of({dep: dvc_md5(Path(dep)) for dep in code})}


def git_tags() -> dict[str, str]:
    """commit and dirty ("true" or "false"), {} outside a git repository.

    dirty is about the stages' code: parameters, results and texts are recorded by value.
    """
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {}
    patch = code_patch()
    return {
        tags.COMMIT: commit,
        tags.DIRTY: "true" if patch is None or patch.paths else "false",
        tags.SOURCE_COMMIT: commit,
    }


def user_tags() -> dict[str, str]:
    """Who runs this, in MLflow's own tag; {} where the system has no name for the user, as in some containers."""
    try:
        return {tags.USER: getpass.getuser()}
    except (KeyError, OSError):
        return {}


def experiment_tags() -> dict[str, str]:
    """The DVC experiment's name and the commit it was made from, {} under plain `dvc repro`."""
    names = {tags.EXPERIMENT_NAME: "DVC_EXP_NAME", tags.BASELINE_COMMIT: "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[variable] for tag, variable in names.items() if os.environ.get(variable)}


def corpus_tags(source: Mapping[str, Any]) -> dict[str, str]:
    """Tags that say which text was trained on. source: what fetch wrote of it, {} if there is nothing."""
    keys = {tags.CORPUS_URL: "url", tags.CORPUS_PATH: "path", tags.CORPUS_SHA256: "sha256"}
    return {tag: str(source[key]) for tag, key in keys.items() if key in source}
