"""What dvc.yaml defines: stages, their inputs as dvc.lock would record them now, and the run key made from those.

Paths are relative to the current folder: the repository's root, or a queued experiment's copy of it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reprogpt.dvc.digest import cached_md5, dvc_md5
from reprogpt.dvc.lock import locked_stage, recorded_inputs, recorded_outs
from reprogpt.messages import print_message
from reprogpt.params.loader import DVC_FILE, PARAMS_FILE, listed_keys, read_mapping


def stage_definition(stage: str) -> dict[str, Any]:
    """The stage's entry in dvc.yaml."""
    definition: dict[str, Any] = read_mapping(DVC_FILE)["stages"][stage]
    return definition


def out_paths(definition: dict[str, Any]) -> list[str]:
    """Paths of a dvc.yaml stage's outs, metrics and plots."""
    listed = [out for kind in ("outs", "metrics", "plots") for out in definition.get(kind, [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in listed]


def is_filled_in(definition: Mapping[str, Any]) -> bool:
    """Whether dvc.lock has other names, paths or values than the stage's entry in dvc.yaml: loop, template or wdir."""
    return not definition.keys().isdisjoint(("foreach", "matrix", "wdir")) or "${" in str(definition)


def stage_inputs(stage: str) -> dict[str, Any]:
    """A stage's cmd, deps (path -> digest) and params as dvc.lock would record them now."""
    definition = stage_definition(stage)
    values = read_mapping(PARAMS_FILE)
    return {
        "cmd": definition["cmd"],
        "deps": {dep: cached_md5(Path(dep)) for dep in definition.get("deps", [])},
        "params": {key: values.get(key) for key in listed_keys(definition, values)},
    }


def is_up_to_date(stage: str) -> bool:
    """Whether DVC would skip the stage: inputs and outs are as dvc.lock records them."""
    locked = locked_stage(stage)
    outs = {Path(path): md5 for path, md5 in recorded_outs(locked).items()}
    if not locked or not all(path.exists() and dvc_md5(path) == md5 for path, md5 in outs.items()):
        return False
    return recorded_inputs(locked) == stage_inputs(stage)


def announce_recorded_outs(stage: str, inputs: Mapping[str, Any]) -> None:
    """Print in a line whether the stage's outs are those that dvc.lock records for the same inputs, or which differ.

    Prints nothing if dvc.lock records other inputs, or none.
    """
    locked = locked_stage(stage)
    if not locked or recorded_inputs(locked) != inputs:
        return
    differing = [path for path, md5 in recorded_outs(locked).items() if dvc_md5(Path(path)) != md5]
    if differing:
        print_message(
            f"NOT the recorded bits: {', '.join(differing)} differ from dvc.lock, which has the same inputs; "
            "`python -m reprogpt verify` says why"
        )
    else:
        print_message(f"the recorded bits: all {len(recorded_outs(locked))} outs of {stage} are those of dvc.lock")


def run_key() -> str:
    """32 hex digits that identify the inputs of the train stage: run_key_of(stage_inputs("train")).

    It links DVC and MLflow: unchanged by `dvc repro --force`, changed by any change of an input.
    """
    return run_key_of(stage_inputs("train"))


def run_key_of(inputs: Mapping[str, Any]) -> str:
    """The run key of a stage's inputs, in the form of stage_inputs."""
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
