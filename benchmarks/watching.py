"""What it costs to record a training: a real outbox, its uploader, and MLflow on SQLite or behind a server.

Steps come at the pace of a training, since the uploader sends what there is every few seconds. Measured are the
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

from reprogpt.tracking.deliver.outbox import OutboxFile, open_outbox
from reprogpt.tracking.deliver.records import Points, TrainingRun
from reprogpt.tracking.deliver.uploader import UPLOAD_INTERVAL, uploading
from reprogpt.tracking.deliver.writer import upload
from reprogpt.tracking.log.system_metrics import SystemMetrics
from reprogpt.tracking.store.uri import store_name
from tools.mlflow_server import TrackingServer

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
        outbox = open_outbox(f"{earlier:032d}")
        tags = {"training_id": "0", "run_key": str(earlier)}
        outbox.append(TrainingRun(name="n", tags=tags, params={}, datasets=[], store=store_name()))
        for step in range(earlier):
            outbox.append(Points(step=step, values=_values(step)))
        upload(outbox)
        rows.append({"store": store, "earlier": earlier, **_pace(outbox, earlier, step_seconds, seconds)})
    return rows


def _pace(outbox: OutboxFile, first: int, step_seconds: float, seconds: float) -> dict[str, float]:
    """Record steps for so long; milliseconds a step, and their shares of it."""
    num_steps, system_metrics = max(1, round(seconds / step_seconds)), SystemMetrics()
    with uploading(outbox):
        time.sleep(1)  # the uploader's start, which there is one of in a training
        waited, began = 0.0, time.process_time()
        for step in range(first, first + num_steps):
            started = time.perf_counter()
            measured = system_metrics.sample() if step % EVAL_FREQ == 0 else {}
            outbox.append(Points(step=step, values=_values(step) | measured))
            waited += time.perf_counter() - started
            time.sleep(step_seconds)
        time.sleep(UPLOAD_INTERVAL + 1)  # the last steps are uploaded, too, before the clock is read
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
