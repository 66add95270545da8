"""The lineage report: lines for a terminal, and whether every link holds."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

from reprogpt.dvc.lock import recorded_inputs
from reprogpt.dvc.pipeline import run_key_of
from reprogpt.dvc.revisions import Revision, list_experiments, resolve_commit
from reprogpt.paths import EVAL_RESULTS, MODEL, TRAIN_SUMMARY
from reprogpt.runs.find import MODEL_TAG, runs_named
from reprogpt.runs.links import DIFFERS, HOLDS, Link, StageLinks, check_links
from reprogpt.tracking.store.tracked_run import TrackedRun

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
    """Lines for the terminal, and the statuses of the links among them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.statuses: set[str] = set()

    @property
    def broken(self) -> bool:
        """Whether some link does not hold."""
        return DIFFERS in self.statuses

    @property
    def conclusion(self) -> str:
        """One line that claims only what was checked."""
        if self.broken:
            return "NOT every link holds: see DIFFERS"
        return "every link that can be checked holds" if HOLDS in self.statuses else "nothing here to check it against"

    def add(self, *lines: str) -> None:
        """Append lines."""
        self.lines += lines

    def add_link(self, link: Link) -> None:
        """Append a link: a line, with a second one if another value was found, and one for a long name."""
        self.statuses.add(link.status)
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


def add_run(report: LineageReport, run: TrackedRun, revision: Revision | None) -> None:
    """Report what an MLflow run records of its origin, checked against the revision that holds its result."""
    tags = run.tags
    report.add(f"MLflow run {run.id}, {run.name}, {run.status}")
    report.add(f"  corpus      {tags.get('corpus.path') or tags.get('corpus.url', 'not on record')}")
    report.add(f"  sha256      {tags.get('corpus.sha256', 'not on record')}")
    if start := tags.get("started_from_sha256"):
        report.add(f"  started from {run.params.get('init_from', 'weights not on record')}", f"  sha256      {start}")
    report.add(f"  run key     {tags.get('run_key', 'not on record')}")
    commit = tags.get("commit", "")
    report.add(
        f"  commit      {commit or 'not on record'}{'' if resolve_commit(commit) else ', not in this repository'}"
    )
    if tags.get("dirty") == "true":
        report.add("              dirty: files were edited that this commit does not hold as they were")
    if experiment := tags.get("dvc.experiment"):
        is_kept = experiment in list_experiments()
        report.add(f"  experiment  {experiment}{'' if is_kept else ', no longer kept here under that name'}")
    report.add(f"  held by     {revision.name if revision else 'nothing here: no dvc.lock found has this run key'}")
    outs = {match[1]: value for key, value in tags.items() if (match := re.fullmatch(r"dvc\.(.*)\.md5", key))}
    locked = revision.recorded_outs if revision else {}
    for path, digest in {**run.datasets, **outs}.items():
        report.add_link(Link(path, digest, locked.get(path)))
    if revision:
        report.add("")


def add_revision(report: LineageReport, revision: Revision, runs: Sequence[TrackedRun]) -> None:
    """Report the stages in a revision's dvc.lock, and the MLflow runs that trained its weights."""
    report.add(f"chain recorded in dvc.lock of {revision.name}")
    for stage in check_links(revision.lock, revision.stages, revision.params, cache(revision.digest)):
        report.add("", f"{MAKES.get(stage.stage, 'made')} ({stage.stage})")
        _add_stage(report, stage)
    key = lock_key(revision)
    if key is not None:
        report.add("", "run key of the weights, from what dvc.lock says they were made of")
        report.add_link(Link(str(TRAIN_SUMMARY), key, revision.summary_key))
        made = _add_runs(report, runs, key, revision.recorded_outs.get(str(MODEL)))
        if made and revision.experiment and not runs_named(revision.experiment, runs):
            report.add(f"  none is named {revision.experiment}: {_why_none_is_named_so(made)}")
        _add_results(report, revision, runs, made)


def _why_none_is_named_so(made: Sequence[TrackedRun]) -> str:
    """made: the runs that trained the result of an experiment of another name, newest first."""
    gone = [run.tags["dvc.experiment"] for run in made if "dvc.experiment" in run.tags]
    gone = [name for name in gone if name not in list_experiments()]
    if gone:
        return f"it was {gone[0]} and is renamed, or DVC had this result already"
    return "DVC had this result already, so nothing trained"


def lock_key(revision: Revision) -> str | None:
    """The run key of the train stage in dvc.lock; None if it is not there."""
    entry = revision.lock.get("train")
    return run_key_of(recorded_inputs(entry)) if entry else None


def _add_stage(report: LineageReport, stage: StageLinks) -> None:
    if not stage.outs:
        report.add("  not in dvc.lock: it never ran")
        return
    kinds = Counter(link.what.partition(" ")[0] for link in stage.inputs if link.status == HOLDS)
    counts = [f"{number} {kind}{'s' if number > 1 else ''}" for kind, number in kinds.items() if kind != "cmd"]
    if kinds:
        report.add(f"  {HOLDS:<8}  made by {', '.join(['cmd', *counts] if kinds['cmd'] else counts)}")
    for link in [*(link for link in stage.inputs if link.status != HOLDS), *stage.outs]:
        report.add_link(link)


def _add_runs(report: LineageReport, runs: Sequence[TrackedRun], key: str, weights: str | None) -> list[TrackedRun]:
    """Report the runs that made weights with this digest, from any inputs, and the runs of this key that did not.

    Returns the former.
    """
    made = [run for run in runs if weights and run.tags.get(MODEL_TAG) == weights]
    others = [run for run in runs if run.tags.get("run_key") == key and run not in made]
    by_digest = f"MLflow runs that made these weights, by the digest of {MODEL}"
    report.add("", by_digest if made else "no MLflow run made these weights")
    for run in made:
        _add_training(report, run, "" if run.tags.get("run_key") == key else "  from other inputs")
    if others:
        report.add("", "MLflow runs with this key that did not")
    for run in others:
        _add_training(report, run, "  OTHER WEIGHTS" if MODEL_TAG in run.tags else "  no weights")
    return made


def _add_training(report: LineageReport, run: TrackedRun, remark: str) -> None:
    corpus = run.tags.get("corpus.path") or run.tags.get("corpus.url", "corpus not on record")
    report.add(f"  {run.id}  {run.status:<8}  {run.name}  {corpus.rpartition('/')[2]}{remark}")


def _add_results(
    report: LineageReport, revision: Revision, runs: Sequence[TrackedRun], made: Sequence[TrackedRun]
) -> None:
    """Report whether eval.json holds the metrics of these weights, by comparison with MLflow.

    made: the runs of these weights. dvc.lock alone can't tell: `dvc exp save` and `dvc commit` record any file as
    made from whatever lies beside it.
    """
    numbers = revision.read_json(str(EVAL_RESULTS))
    if not numbers:
        return
    report.add("", f"numbers in {EVAL_RESULTS}, and in MLflow those of these weights")
    weights = revision.recorded_outs.get(str(MODEL))
    evaluated = [run for run in made if numbers.keys() <= run.metrics.keys()]
    for run in evaluated:
        links = [Link(key, repr(run.metrics[key]), repr(value)) for key, value in numbers.items()]
        wrong = [link for link in links if link.status == DIFFERS]
        for link in wrong or [Link(f"all {len(links)}", f"run {run.id}", f"run {run.id}")]:
            report.add_link(link)
    theirs = [run.tags[MODEL_TAG] for run in runs if MODEL_TAG in run.tags and numbers.items() <= run.metrics.items()]
    if not evaluated and theirs:
        report.add_link(Link("weights with these numbers", weights, weights if weights in theirs else theirs[0]))
    elif not evaluated:
        report.add("  not here  no run of these weights was evaluated")
