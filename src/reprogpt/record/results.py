"""What evaluate and plot add to the MLflow run of the training they look at."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reprogpt.record.tracking import TrackedRun, find_run, run_status, start_run

EVAL_FILE, SAMPLES, PLOTS = Path("data/metrics/eval.json"), Path("data/samples.txt"), Path("data/plots")


@contextmanager
def follow_results(run_key: str) -> Iterator[TrackedRun | None]:
    """The MLflow run of the training, open while the block adds to it; None, said aloud, where there is none."""
    run = find_run(run_key)
    if run is None:
        print(f"No MLflow run has run_key {run_key} (trained elsewhere?): results go to files only.", file=sys.stderr)
        yield None
        return
    with run_status(run):
        yield run


def record_evaluation(run: TrackedRun, params: Mapping[str, Any], step: int) -> None:
    """Log what evaluate wrote, made with params, as of the training's last 0-based step."""
    with _run_for_parameters(run, params) as target:
        target.log_results(json.loads(EVAL_FILE.read_text(encoding="utf-8")), step)
        target.log_file(SAMPLES, "samples")


@contextmanager
def _run_for_parameters(run: TrackedRun, params: Mapping[str, Any]) -> Iterator[TrackedRun]:
    """The run to log an evaluation with these parameters to.

    The training's own run, unless that was evaluated with others already: MLflow never changes a
    parameter, so other values get a child run.
    """
    known = run.run.data.params
    if any(known.get(key, str(value)) != str(value) for key, value in params.items()):
        child = start_run(f"{run.run.info.run_name}-evaluate", {"mlflow.source.name": "stages.evaluate"}, parent=run)
        child.log_params(params)
        with run_status(child):
            yield child
        return
    run.log_params({key: value for key, value in params.items() if key not in known})
    yield run


def record_plots(run: TrackedRun) -> None:
    """Log the figures that plot drew."""
    for path in sorted(PLOTS.glob("*.p[nd][gf]")):
        run.log_file(path, "plots")
