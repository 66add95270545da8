"""Checks what dvc.lock records of each stage against the files. Values in, values out."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reprogpt.dvc.lock import recorded_inputs, recorded_outs
from reprogpt.dvc.pipeline import out_paths

HOLDS = "holds"
DIFFERS = "DIFFERS"
NOT_HERE = "not here"
UNLISTED = "no longer listed in dvc.yaml"


@dataclass(frozen=True)
class Link:
    """A recorded value (None: nothing is recorded) and the value found (None: it can't be checked here)."""

    what: str
    recorded: str | None
    found: str | None

    @property
    def status(self) -> str:
        """HOLDS, DIFFERS, or NOT_HERE if it can't be checked."""
        if self.recorded is None:
            return DIFFERS
        if self.found is None:
            return NOT_HERE
        return HOLDS if self.found == self.recorded else DIFFERS


@dataclass(frozen=True)
class StageLinks:
    """A stage's links to its inputs (cmd, deps, params) and its outs; none if it never ran."""

    stage: str
    inputs: list[Link]
    outs: list[Link]


def check_links(
    lock: Mapping[str, Any], stages: Mapping[str, Any], params: Mapping[str, Any], digest: Callable[[str], str | None]
) -> list[StageLinks]:
    """Every stage of dvc.yaml, in its order, with its links.

    lock, stages: the `stages` of dvc.lock and dvc.yaml. digest: path -> digest of the file, or None.
    A missing dep that another stage makes is checked against that stage's record of it.
    """
    made = {path: md5 for entry in lock.values() for path, md5 in recorded_outs(entry).items()}

    def present(path: str) -> str | None:
        return digest(path) or made.get(path)

    found = []
    for stage, definition in stages.items():
        entry = lock.get(stage)
        inputs = _input_links(entry, definition, params, present) if entry else []
        found.append(StageLinks(stage, inputs, _out_links(entry, definition, digest) if entry else []))
    return found


def _input_links(
    entry: Mapping[str, Any],
    definition: dict[str, Any],
    params: Mapping[str, Any],
    present: Callable[[str], str | None],
) -> list[Link]:
    recorded = recorded_inputs(entry)
    deps = {path: present(path) for path in definition.get("deps", [])}
    links = [Link("cmd", recorded["cmd"], definition["cmd"])]
    for path in {**recorded["deps"], **deps}:
        links.append(Link(f"dep {path}", recorded["deps"].get(path), deps.get(path, UNLISTED)))
    then = {key: json.dumps(value, ensure_ascii=False) for key, value in recorded["params"].items()}
    now = {key: json.dumps(params.get(key), ensure_ascii=False) for key in definition.get("params", [])}
    for key in {**then, **now}:
        links.append(Link(f"param {key}", then.get(key), now.get(key, UNLISTED)))
    return links


def _out_links(entry: Mapping[str, Any], definition: dict[str, Any], digest: Callable[[str], str | None]) -> list[Link]:
    recorded = recorded_outs(entry)
    defined = out_paths(definition)
    links = [Link(path, md5, digest(path) if path in defined else UNLISTED) for path, md5 in recorded.items()]
    return links + [Link(path, None, digest(path)) for path in defined if path not in recorded]
