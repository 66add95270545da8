"""What it costs to record a training: a real outbox, its courier, and MLflow on SQLite or behind a server.

Steps come at the pace of a training, since the courier delivers every few seconds what there is. Measured are the
time for which the training's thread waits, and the processor time of the whole process, which the training might
have used; a server's own work is not in it.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.server import TrackingServer
from reprogpt.record.courier import DELIVER_SECONDS, carried
from reprogpt.record.machine import Machine
from reprogpt.record.outbox import Box, open_box
from reprogpt.record.store import store_name
from reprogpt.record.tracking import deliver

VALUES = {"loss": 1.0, "lr": 1e-4, "max_grad": 0.1, "max_grad_clipped": 0.1, "grad_norm": 1.0}
# What an evaluated step has besides, and how often one comes by params.yaml.
EVALUATED = {"train_loss": 1.0, "val_loss": 1.0, "tokens_per_second": 1.0, "tokens_seen": 1.0}
EVAL_FREQ = 5


def measure_watching(step_seconds: float, *, seconds: float, many: int) -> list[dict[str, Any]]:
    """A row for each store, fresh and with `many` steps in it: milliseconds of a step that lasts step_seconds.

    seconds: for how long steps are recorded in each case.
    """
    before, rows = Path.cwd(), []
    for store in ("SQLite", "server"):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                with _server(Path(folder)) if store == "server" else _own_store():
                    rows += _measure(store, step_seconds, seconds, many)
            finally:
                os.chdir(before)
    return rows


def _measure(store: str, step_seconds: float, seconds: float, many: int) -> list[dict[str, Any]]:
    rows = []
    for earlier in (0, many):
        box = open_box(f"{earlier:032d}")
        tags = {"training_id": "0", "run_key": str(earlier)}
        box.append("training", name="n", tags=tags, params={}, datasets=[], store=store_name())
        for step in range(earlier):
            box.append("metrics", step=step, values=_values(step))
        deliver(box)
        rows.append({"store": store, "earlier": earlier, **_pace(box, earlier, step_seconds, seconds)})
    return rows


def _pace(box: Box, first: int, step_seconds: float, seconds: float) -> dict[str, float]:
    """Record steps for so long; milliseconds a step, and their shares of it."""
    num_steps, machine = max(1, round(seconds / step_seconds)), Machine()
    with carried(box):
        time.sleep(1)  # the courier's start, which there is one of in a training
        waited, began = 0.0, time.process_time()
        for step in range(first, first + num_steps):
            started = time.perf_counter()
            measured = machine.measure() if step % EVAL_FREQ == 0 else {}
            box.append("metrics", step=step, values=_values(step) | measured)
            waited += time.perf_counter() - started
            time.sleep(step_seconds)
        time.sleep(DELIVER_SECONDS + 1)  # the last steps are delivered, too, before the clock is read
        worked = time.process_time() - began
    shares = {"waiting": waited / num_steps, "processor": worked / num_steps}
    return {name: 1000 * value for name, value in shares.items()} | {"share": shares["processor"] / step_seconds}


def _values(step: int) -> dict[str, float]:
    return VALUES | EVALUATED if step % EVAL_FREQ == 0 else VALUES


@contextmanager
def _own_store() -> Iterator[None]:
    removed = os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    if removed is not None:
        os.environ["MLFLOW_TRACKING_URI"] = removed


@contextmanager
def _server(folder: Path) -> Iterator[None]:
    server = TrackingServer(folder)
    with server.running():
        os.environ["MLFLOW_TRACKING_URI"] = server.uri
        try:
            yield
        finally:
            del os.environ["MLFLOW_TRACKING_URI"]
