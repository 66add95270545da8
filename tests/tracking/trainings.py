"""A training as its outbox records it and as the store shows it, and a server's answer to it."""

from typing import Any

import requests
from mlflow import MlflowClient
from mlflow.entities import Run

from reprogpt.tags import RUN_KEY, TRAINING_ID
from reprogpt.tracking.deliver.records import TrainingRun
from reprogpt.tracking.store.client import open_store
from reprogpt.tracking.store.uri import store_name


def training_record(training_id: str, *, run_key: str = "k", **values: Any) -> TrainingRun:
    """The first record of the training's outbox. values: fields that differ."""
    tags = {TRAINING_ID: training_id, RUN_KEY: run_key}
    facts = {"name": training_id, "tags": tags, "params": {}, "datasets": [], "store": store_name()}
    return TrainingRun(**facts | values)


def runs(client: MlflowClient) -> dict[str, Run]:
    """The store's runs by name."""
    return {run.info.run_name: run for run in client.search_runs([open_store()[1]])}


def only_run(client: MlflowClient) -> Run:
    """The store's run, of which there is one."""
    (run,) = client.search_runs([open_store()[1]])
    return run


def answer(status: int, body: str = "<html>") -> requests.Response:
    """A server's, or of what is between here and it."""
    response = requests.Response()
    response.status_code = status
    response._content = body.encode()
    return response
