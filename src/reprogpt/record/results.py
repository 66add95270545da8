"""What evaluate and plot add to the MLflow run of the training they look at."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reprogpt.record.courier import carried
from reprogpt.record.outbox import Box, open_box
from reprogpt.record.provenance import experiment_facts, git_facts
from reprogpt.record.store import store_name

EVAL_FILE, SAMPLES, PLOTS = Path("data/metrics/eval.json"), Path("data/samples.txt"), Path("data/plots")


@contextmanager
def follow_results(run_key: str, adds: str) -> Iterator[Box]:
    """A box for the MLflow run of the training with this key, carried while the block adds to it.

    adds: the metric or artifact folder that tells whether the run has this stage's results already: a repeat
    that is stopped then leaves it FINISHED.
    """
    box = open_box()
    box.append("results of", run_key=run_key, experiment=os.environ.get("DVC_EXP_NAME"), store=store_name())
    with carried(box, adds=adds):
        yield box


def record_evaluation(box: Box, sampling: Mapping[str, Any], step: int) -> None:
    """Add what evaluate wrote, made with these parameters of its, as of the training's last 0-based step."""
    values = json.loads(EVAL_FILE.read_text(encoding="utf-8"))
    origin: dict[str, Any] = {"sampling": dict(sampling), "tags": git_facts() | experiment_facts()}
    box.append("results", values=values, step=step, **origin)
    box.append_file(SAMPLES, "samples", **origin)
    box.append("description", **origin)


def record_plots(box: Box) -> None:
    """Add the figures that plot drew."""
    for path in sorted(PLOTS.glob("*.p[nd][gf]")):
        box.append_file(path, "plots")
