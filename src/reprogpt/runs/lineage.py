"""Where a result comes from: what MLflow and dvc.lock record of it, each value checked against what is here."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from reprogpt.dvc.lock import recorded_inputs, recorded_outs
from reprogpt.dvc.pipeline import is_filled_in, out_paths
from reprogpt.dvc.revisions import Commit, Workspace, resolve_commit
from reprogpt.params.loader import PARAMS_FILE, listed_keys
from reprogpt.paths import EVAL_RESULTS, MODEL, TRAIN_SUMMARY
from reprogpt.runs.find import MODEL_TAG, Subject, revision_holding
from reprogpt.tags import COMMIT, DIRTY, RUN_KEY
from reprogpt.tracking.store.tracked_run import TrackedRun

HOLDS = "holds"
DIFFERS = "DIFFERS"
NOT_HERE = "not here"
UNLISTED = "no longer listed in dvc.yaml"


@dataclass(frozen=True)
class Link:
    """A recorded value (None: nothing is recorded) and the present one (None: there is none here to check)."""

    what: str
    recorded: str | None
    present: str | None

    @property
    def status(self) -> str:
        """HOLDS, DIFFERS, or NOT_HERE if it can't be checked."""
        if self.recorded is None:
            return DIFFERS
        if self.present is None:
            return NOT_HERE
        return HOLDS if self.present == self.recorded else DIFFERS


@dataclass(frozen=True)
class StageLinks:
    """A stage's links to its inputs (cmd, deps, params) and its outs; none if it never ran.

    stage: the name in dvc.lock, `stage@item` for an item of a foreach or matrix stage.
    """

    stage: str
    inputs: list[Link]
    outs: list[Link]
    has_run: bool = True


@dataclass(frozen=True)
class Lineage:
    """The origin of a run, of a revision's result, or of both.

    run_links: the digests that the run records, checked against the revision's dvc.lock.
    key: the run key of train's recorded inputs, checked against train.json; None if dvc.lock has no train stage.
    makers: the MLflow runs that made the revision's weights, by their digest, from any inputs.
    others: the MLflow runs with the key that made other weights, or none.
    results: the metrics in eval.json, checked against the makers'; [] if none of them was evaluated.
    """

    subject: Subject
    run_links: list[Link] = field(default_factory=list)
    stages: list[StageLinks] = field(default_factory=list)
    key: Link | None = None
    makers: list[TrackedRun] = field(default_factory=list)
    others: list[TrackedRun] = field(default_factory=list)
    results: list[Link] = field(default_factory=list)

    @property
    def statuses(self) -> set[str]:
        """The statuses of all links."""
        chain = [link for stage in self.stages for link in [*stage.inputs, *stage.outs]]
        links = [*self.run_links, *chain, *([self.key] if self.key else []), *self.results]
        return {link.status for link in links}

    @property
    def is_broken(self) -> bool:
        """Whether some link does not hold."""
        return DIFFERS in self.statuses


def trace(subject: Subject, runs: Sequence[TrackedRun]) -> Lineage:
    """The lineage of a run or revision. runs: all of the store, newest first."""
    run, revision = subject.run, subject.revision
    run_links = _run_links(run, revision.recorded_outs if revision else {}) if run else []
    if revision is None:
        return Lineage(subject, run_links)
    stages = check_links(revision.lock, revision.stages, revision.params, cache(revision.digest))
    key, weights = revision.lock_key, revision.recorded_outs.get(str(MODEL))
    if key is None:
        return Lineage(subject, run_links, stages)
    makers = [run for run in runs if weights and run.tags.get(MODEL_TAG) == weights]
    others = [run for run in runs if run.tags.get(RUN_KEY) == key and run not in makers]
    key_link = Link(str(TRAIN_SUMMARY), key, revision.summary_key)
    results = _result_links(revision.read_json(str(EVAL_RESULTS)), weights, makers, runs)
    return Lineage(subject, run_links, stages, key_link, makers, others, results)


def _run_links(run: TrackedRun, locked: Mapping[str, str]) -> list[Link]:
    outs = {match[1]: value for key, value in run.tags.items() if (match := re.fullmatch(r"dvc\.(.*)\.md5", key))}
    return [Link(path, digest, locked.get(path)) for path, digest in {**run.datasets, **outs}.items()]


def check_links(
    lock: Mapping[str, Any], stages: Mapping[str, Any], params: Mapping[str, Any], digest: Callable[[str], str | None]
) -> list[StageLinks]:
    """Every stage of dvc.yaml, in its order, with its links.

    lock, stages: the `stages` of dvc.lock and dvc.yaml. digest: path -> digest of the file, or None.
    A missing dep that another stage makes is checked against that stage's record of it. Where DVC fills in a
    stage's definition (foreach, matrix, templates, wdir), only the recorded files are checked.
    """
    made = {path: md5 for entry in lock.values() for path, md5 in recorded_outs(entry).items()}

    def present(path: str) -> str | None:
        return digest(path) or made.get(path)

    chain = []
    for stage, definition in stages.items():
        entries = {name: entry for name, entry in lock.items() if name.partition("@")[0] == stage}
        if not entries:
            chain.append(StageLinks(stage, [], [], has_run=False))
        for name, entry in entries.items():
            known = _recorded_definition(entry) if is_filled_in(definition) else definition
            inputs = _input_links(entry, known, params, present)
            chain.append(StageLinks(name, inputs, _out_links(entry, known, digest)))
    return chain


def _recorded_definition(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage of dvc.yaml would list for a dvc.lock entry, without the command."""
    inputs = recorded_inputs(entry)
    return {"deps": list(inputs["deps"]), "params": list(inputs["params"]), "outs": list(recorded_outs(entry))}


def _input_links(
    entry: Mapping[str, Any],
    definition: dict[str, Any],
    params: Mapping[str, Any],
    present: Callable[[str], str | None],
) -> list[Link]:
    recorded = recorded_inputs(entry)
    deps = {path: present(path) for path in definition.get("deps", [])}
    links = [Link("cmd", str(recorded["cmd"]), str(definition["cmd"]))] if "cmd" in definition else []
    for path in {**recorded["deps"], **deps}:
        links.append(Link(f"dep {path}", recorded["deps"].get(path), deps.get(path, UNLISTED)))
    then = {key: json.dumps(value, ensure_ascii=False) for key, value in recorded["params"].items()}
    keys = listed_keys(definition, params)
    now = {key: json.dumps(_value_at(params, key), ensure_ascii=False) for key in keys}
    for key in {**then, **now}:
        links.append(Link(f"param {key}", then.get(key), now.get(key, UNLISTED)))
    for file, values in entry.get("params", {}).items():
        if file != PARAMS_FILE.name:
            links += [Link(f"param {file}:{key}", json.dumps(value), None) for key, value in values.items()]
    return links


def _value_at(params: Mapping[str, Any], key: str) -> Any:
    """The value of a key, nested ones with dots; None if there is none."""
    value: Any = params
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _out_links(entry: Mapping[str, Any], definition: dict[str, Any], digest: Callable[[str], str | None]) -> list[Link]:
    recorded = recorded_outs(entry)
    defined = out_paths(definition)
    links = [Link(path, md5, digest(path) if path in defined else UNLISTED) for path, md5 in recorded.items()]
    return links + [Link(path, None, digest(path)) for path in defined if path not in recorded]


def _result_links(
    metrics: Mapping[str, float], weights: str | None, makers: Sequence[TrackedRun], runs: Sequence[TrackedRun]
) -> list[Link]:
    """Whether eval.json holds the metrics of these weights; see Lineage.

    dvc.lock can't tell: `dvc exp save` and `dvc commit` record any file as made from whatever lies beside it.
    """
    links = []
    evaluated = [run for run in makers if metrics and metrics.keys() <= run.metrics.keys()]
    for run in evaluated:
        each = [Link(key, repr(run.metrics[key]), repr(value)) for key, value in metrics.items()]
        wrong = [link for link in each if link.status == DIFFERS]
        links += wrong or [Link(f"all {len(metrics)}", f"run {run.id}", f"run {run.id}")]
    theirs = [run.tags[MODEL_TAG] for run in runs if MODEL_TAG in run.tags and metrics.items() <= run.metrics.items()]
    if metrics and not evaluated and theirs:
        links.append(Link("weights with these numbers", weights, weights if weights in theirs else theirs[0]))
    return links


def restore_commands(lineage: Lineage) -> list[str]:
    """Commands that restore the subject's revision, or a sentence if none are needed or none would do."""
    run, revision = lineage.subject.run, lineage.subject.revision
    if isinstance(revision, Workspace) and not lineage.is_broken:
        return ["nothing to do: it is the workspace's state"]
    if isinstance(revision, Workspace) and run:
        revision = revision_holding(run)
    if isinstance(revision, Commit):
        if revision.experiment:
            return [f"dvc exp apply {revision.experiment}", "dvc repro"]  # its outs come from DVC's cache
        return [f"git checkout {revision.commit}", "dvc checkout"]
    if run is None:
        return []
    commit = run.tags.get(COMMIT, "")
    if not resolve_commit(commit):
        return [f"impossible here: this repository lacks the run's commit {commit or '(none is on record)'}"]
    return repeat_commands(run)


def repeat_commands(run: TrackedRun) -> list[str]:
    """Commands that train a run again from its commit and parameters; [] if it has no commit."""
    commit = run.tags.get(COMMIT)
    if not commit:
        return []
    download = f"mlflow artifacts download -r {run.id} -a"
    patch = [f"{download} uncommitted.patch -d .", "git apply uncommitted.patch"]
    return [
        f"git checkout {commit}",
        *(patch if run.tags.get(DIRTY) == "true" else []),
        f"{download} params.yaml -d .",
        "dvc repro  # trains again, unless DVC's cache has the result",
    ]
