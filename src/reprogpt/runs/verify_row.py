"""Trains a row of docs/results.csv again, from its own commit in a temporary clone, and compares every bit."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from reprogpt.dvc.git import git
from reprogpt.dvc.revisions import Commit, resolve_commit
from reprogpt.errors import PipelineError
from reprogpt.files import file_digest
from reprogpt.params.loader import PARAMS_FILE
from reprogpt.paths import EVAL_RESULTS, HISTORY, MODEL, RAW_TEXT
from reprogpt.runs.lineage import HOLDS, Link
from reprogpt.runs.results import (
    ENVIRONMENT,
    EVALUATIONS,
    NUMBERS,
    SHOWN_DIGITS,
    Row,
    evaluation_rows,
    numbers_of,
    params_of,
    read_table,
)
from reprogpt.runs.sandbox import commit_clone, rerun_stages
from reprogpt.runs.verify import NUM_COPIES, PINS, STAGES, RunEnvironments, store_of, unpinned_versions
from reprogpt.step_record import EVAL_METRICS
from reprogpt.tracking.store.client import search_runs

ROW_STAGES = STAGES[: STAGES.index("evaluate") + 1]
WEIGHTS = "weights"


@dataclass(frozen=True)
class RowRerun:
    """links: each number, the evaluations if they are on file, and last the digest of the weights."""

    links: list[Link]
    environments: RunEnvironments

    @property
    def is_same(self) -> bool:
        """Whether everything has the recorded bits."""
        return all(link.status == HOLDS for link in self.links)

    @property
    def begins(self) -> str:
        """The stage at which a difference begins."""
        return "evaluate" if self.links[-1].status == HOLDS else "train"


def rerun_row(row: Row) -> RowRerun:
    """Train and evaluate a row again, with its commit's code and parameters, and this Python's packages.

    The stages' output goes to standard error. Raises PipelineError if it can't be tried, or a stage fails.
    """
    commit = _commit_of(row)
    params = params_of(row, commit.params)
    sizes = [out.get("size", 0) for stage in ROW_STAGES for out in commit.lock.get(stage, {}).get("outs", [])]
    with commit_clone(commit.commit, needed_bytes=NUM_COPIES * sum(sizes)) as clone:
        # Another text would give other numbers, so the bundled one is no substitute if the host can't be reached.
        YAML().dump(params | {"offline_corpus": ""}, clone / PARAMS_FILE)
        if RAW_TEXT.is_file() and file_digest(RAW_TEXT) == params.get("corpus_sha256"):
            (clone / RAW_TEXT).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(RAW_TEXT, clone / RAW_TEXT)
        rerun_stages(clone, ROW_STAGES)
        links = _links(row, clone)
        with store_of(clone):
            trained = next((run.tags for run in search_runs()), {})
    recorded = {tag: row[tag] for tag in ENVIRONMENT}
    here = {tag: trained[tag] for tag in ENVIRONMENT if tag in trained}
    pins = unpinned_versions((commit.read(str(PINS)) or b"").decode())
    return RowRerun(links, RunEnvironments(recorded, here, pins))


def _commit_of(row: Row) -> Commit:
    commit = resolve_commit(row["commit"])
    if commit is None:
        is_shallow = git("rev-parse", "--is-shallow-repository") == "true"
        command = "git fetch --unshallow" if is_shallow else "git fetch"
        raise PipelineError(f"commit {row['commit']} of this row is not in this clone; `{command}` may bring it")
    return commit


def _links(row: Row, clone: Path) -> list[Link]:
    """What the row and the evaluations on file record, with what the clone made. The weights are the last."""
    made, evaluations = numbers_in(clone)
    weights = file_digest(clone / MODEL / "model.safetensors")
    links = [Link(name, row[name], made.get(name)) for name in NUMBERS if row[name]]
    recorded = [line for line in read_table(EVALUATIONS) if line["weights"] == row["weights"][:SHOWN_DIGITS]]
    if recorded:
        links.append(_compared(recorded, evaluation_rows(row["weights"], evaluations)))
    return [*links, Link(WEIGHTS, row["weights"], weights)]


def numbers_in(folder: Path) -> tuple[Row, dict[int, dict[str, float]]]:
    """numbers_of the training whose outs are in a repository's folder, and its evaluations."""
    history = {int(cells["step"]): cells for cells in read_table(folder / HISTORY)}
    losses = {step: float(cells["loss"]) for step, cells in history.items()}
    evaluated = {step: cells for step, cells in history.items() if cells["val_loss"]}
    evaluations = {step: {name: float(cells[name]) for name in EVAL_METRICS} for step, cells in evaluated.items()}
    final: dict[str, float] = json.loads((folder / EVAL_RESULTS).read_bytes())
    return numbers_of(losses, evaluations, final), evaluations


def _compared(recorded: list[Row], made: list[Row]) -> Link:
    """All evaluations as one link, which shows the first that differs."""
    texts = [[f"step {line['step']}: {line['train_loss']} {line['val_loss']}" for line in t] for t in (recorded, made)]
    differing = [(one, other) for one, other in zip(*texts, strict=False) if one != other]
    name = f"{len(recorded)} evaluations"
    if differing:
        return Link(name, *differing[0])
    return Link(name, f"{len(recorded)} of {len(recorded)}", f"{len(made)} of {len(recorded)}")
