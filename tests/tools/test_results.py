"""Rows from MLflow: which runs are refused, and that adding again changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reprogpt import tags
from reprogpt.decide.groups import EVALUATE_METRICS
from reprogpt.dvc.revisions import Commit
from reprogpt.errors import PipelineError
from reprogpt.runs.results import EVALUATIONS, RESULTS, read_table
from reprogpt.tracking.store.tracked_run import TrackedRun
from tools import results

COMMIT = "c" * 40
RUN = TrackedRun(
    id="1" * 32,
    name="a-run",
    status="FINISHED",
    tags={
        tags.COMMIT: COMMIT,
        tags.DIRTY: "false",
        tags.WEIGHTS_SHA256: "d" * 64,
        tags.CORPUS_SHA256: "text",
        "torch": "2.13.0",
    },
    metrics=dict.fromkeys(EVALUATE_METRICS, 0.1),
)
EVALUATED = {0: {"train_loss": 5.0, "val_loss": 5.5}}
PARAMS = {"seed": 3, "peak_lr": 0.001, "corpus_sha256": "text"}


class Base(Commit):
    """A commit whose params.yaml has the default rate."""

    params = PARAMS | {"peak_lr": 0.0005, "emb_dim": 768}


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The commit and the run's points are there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "resolve_commit", {COMMIT: Base(COMMIT, "it")}.get)
    monkeypatch.setattr(results, "_digest_of", lambda commit: "code")
    monkeypatch.setattr(results, "_records", lambda run_id: (Base.params | PARAMS, {0: 5.0, 1: 6.0}, EVALUATED, 12))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "RUNNING"}, "its status is RUNNING"),
        ({"status": "FAILED"}, "its status is FAILED"),
        ({tags.COMMIT: None}, "it has no commit"),
        ({tags.COMMIT: "e" * 40}, "commit e+ is not in this repository"),
        ({tags.DIRTY: "true"}, "uncommitted changes"),
        ({tags.DIRTY: None}, "uncommitted changes"),
        ({tags.WEIGHTS_SHA256: None}, "it has no weights.sha256"),
        ({"metrics": {}}, "it has no final_train_loss, final_val_loss, val_accuracy"),
        ({tags.CORPUS_SHA256: "other"}, "the text that corpus_sha256 names"),
    ],
)
def test_a_run_that_proves_nothing_is_refused(change: dict[str, Any], reason: str) -> None:
    fields = {key: value for key, value in change.items() if key in ("status", "metrics")}
    kept = {key: value for key, value in (RUN.tags | change).items() if value is not None and key not in fields}
    with pytest.raises(PipelineError, match=f"a-run.* is no result: .*{reason}"):
        results.read_run(replace(RUN, **fields, tags=kept))


def test_a_row_has_what_the_run_recorded() -> None:
    row, evaluations = results.read_run(RUN)
    assert row["overrides"] == "peak_lr=0.001"
    assert (row["seed"], row["final_val_loss"], row["last_val_loss"]) == ("3", "0.1", "5.5")
    assert (row["loss_jump"], row["loss_jump_step"], row["seconds"]) == ("1.0", "1", "12")
    assert (row["commit"], row["code"], row["torch"], row["threads"]) == (COMMIT, "code", "2.13.0", "")
    assert evaluations == [{"weights": "d" * 8, "step": "0", "train_loss": "5.0", "val_loss": "5.5"}]


def test_adding_a_run_again_changes_nothing_and_other_weights_are_another_row(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(RUN, id="2" * 32, tags=RUN.tags | {tags.WEIGHTS_SHA256: "a" * 64})
    monkeypatch.setattr(results, "search_runs", lambda: [RUN, other])
    monkeypatch.setattr("reprogpt.runs.find.list_experiments", dict)
    results.add(["a-run"])
    results.add(["222222"])
    files = RESULTS.read_bytes(), EVALUATIONS.read_bytes()
    results.add(["222222", "111111"])
    assert (RESULTS.read_bytes(), EVALUATIONS.read_bytes()) == files
    assert [row["weights"][0] for row in read_table(RESULTS)] == ["a", "d"]
    assert len(read_table(EVALUATIONS)) == 2


def test_another_training_with_the_same_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "search_runs", lambda: [RUN, replace(RUN, id="2" * 32)])
    monkeypatch.setattr("reprogpt.runs.find.list_experiments", dict)
    read_run = results.read_run
    monkeypatch.setattr(
        results, "read_run", lambda run: (read_run(run)[0] | {"overrides": f"eval_iter={run.id[0]}"}, [])
    )
    with pytest.raises(PipelineError, match="it has the weights of the row eval_iter=1, seed 3"):
        results.add(["111111", "222222"])


def test_a_refused_run_leaves_the_file_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "search_runs", lambda: [RUN, replace(RUN, id="2" * 32, status="FAILED")])
    monkeypatch.setattr("reprogpt.runs.find.list_experiments", dict)
    with pytest.raises(PipelineError, match="FAILED"):
        results.add(["111111", "222222"])
    assert not RESULTS.exists()
