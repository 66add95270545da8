"""What a lineage has to say, as lines for a terminal, and whether all of it holds."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

from reprogpt.dvc_files import recorded_inputs, run_key_of
from reprogpt.lineage.links import DIFFERS, HOLDS, Link, StageLinks, check_links
from reprogpt.lineage.resolve_run import named
from reprogpt.lineage.revisions import SUMMARY, State, experiments, resolve_commit
from reprogpt.tracking.runs import TrackedRun

MODEL, RESULTS = "data/model", "data/metrics/eval.json"
MODEL_TAG = f"dvc.{MODEL}.md5"
MAKES = {
    "fetch": "raw text",
    "split": "train and validation text",
    "tokenize": "tokens",
    "train": "weights",
    "evaluate": "results",
    "plot": "plots",
}
NAME_WIDTH = 28  # the longest path of an out


class LineageReport:
    """Lines for the terminal, and what became of the links among them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.seen: set[str] = set()  # statuses

    @property
    def broken(self) -> bool:
        """Whether a link was seen not to hold."""
        return DIFFERS in self.seen

    @property
    def conclusion(self) -> str:
        """One line that claims no more than was checked."""
        if self.broken:
            return "NOT every link holds: see DIFFERS"
        return "every link that can be checked holds" if HOLDS in self.seen else "nothing here to check it against"

    def add(self, *lines: str) -> None:
        """Take lines."""
        self.lines += lines

    def add_link(self, link: Link) -> None:
        """Take a link: a line, with a second one where something else was found, and one for a long name."""
        self.seen.add(link.status)
        name = link.what
        if len(name) > NAME_WIDTH:
            self.add(f"  {link.status:<8}  {name}")
            self._row("", "recorded", link.recorded)
        else:
            self._row(link.status, name, link.recorded)
        if link.status == DIFFERS:
            self._row("", "found", link.found)

    def _row(self, status: str, name: str, value: str | None) -> None:
        self.add(f"  {status:<8}  {name:<{NAME_WIDTH}}  {'nothing' if value is None else value}")


def add_run(findings: LineageReport, run: TrackedRun, state: State | None) -> None:
    """What an MLflow run says of its origin, and whether the state that holds its result says the same."""
    tags = run.tags
    findings.add(f"MLflow run {run.id}, {run.name}, {run.status}")
    findings.add(f"  corpus      {tags.get('corpus.path') or tags.get('corpus.url', 'not on record')}")
    findings.add(f"  sha256      {tags.get('corpus.sha256', 'not on record')}")
    if start := tags.get("started_from_sha256"):
        findings.add(f"  started from {run.params.get('init_from', 'weights not on record')}", f"  sha256      {start}")
    findings.add(f"  run key     {tags.get('run_key', 'not on record')}")
    commit = tags.get("commit", "")
    findings.add(
        f"  commit      {commit or 'not on record'}{'' if resolve_commit(commit) else ', not in this repository'}"
    )
    if tags.get("dirty") == "true":
        findings.add("              dirty: files were edited that this commit does not hold as they were")
    if experiment := tags.get("dvc.experiment"):
        findings.add(f"  experiment  {experiment}{'' if experiment in experiments() else ', no longer kept here'}")
    findings.add(f"  held by     {state.name if state else 'nothing here: no dvc.lock found has this run key'}")
    outs = {match[1]: value for key, value in tags.items() if (match := re.fullmatch(r"dvc\.(.*)\.md5", key))}
    locked = state.recorded_outs if state else {}
    for path, digest in {**run.datasets, **outs}.items():
        findings.add_link(Link(path, digest, locked.get(path)))
    if state:
        findings.add("")


def add_state(findings: LineageReport, state: State, runs: Sequence[TrackedRun]) -> None:
    """The chain that a state's dvc.lock records, and the MLflow runs that trained its weights."""
    findings.add(f"chain recorded in dvc.lock of {state.name}")
    for stage in check_links(state.lock, state.stages, state.params, cache(state.digest)):
        findings.add("", f"{MAKES.get(stage.stage, 'made')} ({stage.stage})")
        _add_stage(findings, stage)
    key = lock_key(state)
    if key is not None:
        findings.add("", "run key of the weights, from what dvc.lock says they were made of")
        findings.add_link(Link(SUMMARY, key, state.summary_key))
        made = _add_runs(findings, runs, key, state.recorded_outs.get(MODEL))
        if made and state.experiment and not named(state.experiment, runs):
            findings.add(f"  none is named {state.experiment}: DVC had this result already, so nothing trained")
        _add_results(findings, state, runs, made)


def lock_key(state: State) -> str | None:
    """The run key of what dvc.lock records of train; None if it records nothing of it."""
    entry = state.lock.get("train")
    return run_key_of(recorded_inputs(entry)) if entry else None


def _add_stage(findings: LineageReport, stage: StageLinks) -> None:
    if not stage.outs:
        findings.add("  not in dvc.lock: it never ran")
        return
    kinds = Counter(link.what.partition(" ")[0] for link in stage.inputs if link.status == HOLDS)
    counts = [f"{number} {kind}{'s' if number > 1 else ''}" for kind, number in kinds.items() if kind != "cmd"]
    if kinds:
        findings.add(f"  {HOLDS:<8}  made by {', '.join(['cmd', *counts] if kinds['cmd'] else counts)}")
    for link in [*(link for link in stage.inputs if link.status != HOLDS), *stage.outs]:
        findings.add_link(link)


def _add_runs(findings: LineageReport, runs: Sequence[TrackedRun], key: str, weights: str | None) -> list[TrackedRun]:
    """The runs that made weights of this digest, from whatever inputs, and those of this key that did not.

    Returns the former.
    """
    made = [run for run in runs if weights and run.tags.get(MODEL_TAG) == weights]
    others = [run for run in runs if run.tags.get("run_key") == key and run not in made]
    by_digest = f"MLflow runs that made these weights, by the digest of {MODEL}"
    findings.add("", by_digest if made else "no MLflow run made these weights")
    for run in made:
        _add_training(findings, run, "" if run.tags.get("run_key") == key else "  from other inputs")
    if others:
        findings.add("", "MLflow runs with this key that did not")
    for run in others:
        _add_training(findings, run, "  OTHER WEIGHTS" if MODEL_TAG in run.tags else "  no weights")
    return made


def _add_training(findings: LineageReport, run: TrackedRun, remark: str) -> None:
    corpus = run.tags.get("corpus.path") or run.tags.get("corpus.url", "corpus not on record")
    findings.add(f"  {run.id}  {run.status:<8}  {run.name}  {corpus.rpartition('/')[2]}{remark}")


def _add_results(findings: LineageReport, state: State, runs: Sequence[TrackedRun], made: Sequence[TrackedRun]) -> None:
    """Whether eval.json holds the numbers of these weights, by what MLflow has.

    made: the runs of these weights. dvc.lock alone can't tell: `dvc exp save` and `dvc commit` record whatever
    lies there as made from whatever lies beside it.
    """
    numbers = state.read_json(RESULTS)
    if not numbers:
        return
    findings.add("", f"numbers in {RESULTS}, and in MLflow those of these weights")
    weights = state.recorded_outs.get(MODEL)
    evaluated = [run for run in made if numbers.keys() <= run.metrics.keys()]
    for run in evaluated:
        links = [Link(key, repr(run.metrics[key]), repr(value)) for key, value in numbers.items()]
        wrong = [link for link in links if link.status == DIFFERS]
        for link in wrong or [Link(f"all {len(links)}", f"run {run.id}", f"run {run.id}")]:
            findings.add_link(link)
    theirs = [run.tags[MODEL_TAG] for run in runs if MODEL_TAG in run.tags and numbers.items() <= run.metrics.items()]
    if not evaluated and theirs:
        findings.add_link(Link("weights with these numbers", weights, weights if weights in theirs else theirs[0]))
    elif not evaluated:
        findings.add("  not here  no run of these weights was evaluated")
