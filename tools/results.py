"""The results of full-size and small trainings: rows of docs/results.csv from MLflow, and the pages made from them.

    python -m tools.results add RUN...     write the rows of these MLflow runs, by name or id
    python -m tools.results pages          write the tables and figures of README.md and docs/ again (`make results`)

A row is read from the run's own records. The same weights, overrides and seed again replace a row.
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from reprogpt import tags
from reprogpt.decide.groups import EVALUATE_METRICS
from reprogpt.dvc.revisions import Commit, resolve_commit
from reprogpt.errors import PipelineError
from reprogpt.files import write_text_atomic
from reprogpt.params.loader import PARAMS_FILE, read_mapping
from reprogpt.process.run import run_program
from reprogpt.runs.find import require_run
from reprogpt.runs.results import (
    COLUMNS,
    ENVIRONMENT,
    EVALUATION_COLUMNS,
    EVALUATIONS,
    RESULTS,
    SHOWN_DIGITS,
    Row,
    code_digest,
    evaluation_rows,
    label,
    numbers_of,
    overrides_of,
    read_table,
    table_csv,
)
from reprogpt.step_record import EVAL_METRICS
from reprogpt.tracking.store.client import open_store, search_runs
from reprogpt.tracking.store.errors import store_errors
from reprogpt.tracking.store.tracked_run import TrackedRun
from tools.result_pages import is_small, pages, present_results, write_figures

KEY = ("overrides", "seed", "weights")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("add").add_argument("runs", nargs="+", metavar="RUN")
    commands.add_parser("pages")
    arguments = parser.parse_args()
    if arguments.command == "add":
        add(arguments.runs)
    else:
        write_pages()


def add(names: Sequence[str]) -> None:
    """Write the rows of these runs, and print them. Raises PipelineError, without writing, if a run can't be a row."""
    known = search_runs()
    rows = {tuple(row[column] for column in KEY): row for row in read_table(RESULTS)}
    evaluations = {(row["weights"], row["step"]): row for row in read_table(EVALUATIONS)}
    for name in names:
        run, _ = require_run(name, known)
        row, evaluated = read_run(run)
        key = tuple(row[column] for column in KEY)
        # Two trainings have the same weights if they differ in a key that only observes, such as eval_iter.
        twins = [other for its_key, other in rows.items() if other["weights"] == row["weights"] and its_key != key]
        if twins:
            raise _refusal(run, f"it has the weights of the row {label(twins[0])}, so its digest would name two rows")
        rows[key] = row
        if not is_small(row):
            evaluations |= {(line["weights"], line["step"]): line for line in evaluated}
        print(f"{row['weights'][:SHOWN_DIGITS]}  {label(row)}")
    in_order = sorted(rows.values(), key=lambda row: (row["overrides"], int(row["seed"]), row["weights"]))
    write_text_atomic(RESULTS, table_csv(COLUMNS, in_order))
    by_step = sorted(evaluations.values(), key=lambda line: (line["weights"], int(line["step"])))
    write_text_atomic(EVALUATIONS, table_csv(EVALUATION_COLUMNS, by_step))


def read_run(run: TrackedRun) -> tuple[Row, list[Row]]:
    """The row of a finished training, and those of its evaluations. Raises PipelineError if it can't be a row."""
    commit = _commit_of(run)
    params, losses, evaluations, seconds = _records(run.id)
    if run.tags.get(tags.CORPUS_SHA256) != params.get("corpus_sha256"):
        raise _refusal(run, "it did not train on the text that corpus_sha256 names, so it can't be repeated")
    final = {name: run.metrics[name] for name in EVALUATE_METRICS}
    weights = run.tags[tags.WEIGHTS_SHA256]
    row = {column: "" for column in COLUMNS} | {
        "overrides": overrides_of(params, commit.params),
        "seed": str(params["seed"]),
        **numbers_of(losses, evaluations, final),
        "weights": weights,
        "seconds": str(seconds),
        "commit": commit.commit,
        "code": _digest_of(commit.commit),
        **{tag: run.tags.get(tag, "") for tag in ENVIRONMENT},
    }
    return row, evaluation_rows(weights, evaluations)


def _commit_of(run: TrackedRun) -> Commit:
    """The commit of a run that can be a row."""
    if run.status != "FINISHED":
        raise _refusal(run, f"its status is {run.status}, not FINISHED")
    if tags.COMMIT not in run.tags:
        raise _refusal(run, "it has no commit: it was not trained in a git repository")
    if run.tags.get(tags.DIRTY) != "false":
        raise _refusal(run, "its code had uncommitted changes")
    missing = sorted((EVALUATE_METRICS | {tags.WEIGHTS_SHA256}) - run.metrics.keys() - run.tags.keys())
    if missing:
        raise _refusal(run, f"it has no {', '.join(missing)}")
    commit = resolve_commit(run.tags[tags.COMMIT])
    if commit is None:
        raise _refusal(run, f"its commit {run.tags[tags.COMMIT]} is not in this repository")
    return commit


def _refusal(run: TrackedRun, reason: str) -> PipelineError:
    return PipelineError(f"run {run.id} ({run.name}) is no result: {reason}")


@cache
def _digest_of(commit: str) -> str:
    return code_digest(Commit(commit, f"commit {commit}"))


def _records(run_id: str) -> tuple[dict[str, Any], dict[int, float], dict[int, dict[str, float]], int]:
    """params.yaml; the loss of each step; train_loss and val_loss of each evaluation; seconds until the last step."""
    client, _ = open_store()
    with store_errors(), tempfile.TemporaryDirectory() as folder:
        params = read_mapping(Path(client.download_artifacts(run_id, str(PARAMS_FILE), folder)))
        points = {name: client.get_metric_history(run_id, name) for name in ("loss", *EVAL_METRICS)}
        start = client.get_run(run_id).info.start_time
    values = {name: {point.step: point.value for point in history} for name, history in points.items()}
    evaluations = {step: {name: values[name][step] for name in EVAL_METRICS} for step in values["val_loss"]}
    end = max(point.timestamp for point in points["loss"])
    return params, values["loss"], evaluations, round((end - start) / 1000)


def write_pages() -> None:
    """Write the generated parts of the pages, and the figures, and name those pages that changed."""
    results = present_results()
    for path, text in pages(results).items():
        if text != path.read_text("utf-8"):
            write_text_atomic(path, text)
            print(f"{path} changed")
    write_figures(results)


if __name__ == "__main__":
    run_program(main)
