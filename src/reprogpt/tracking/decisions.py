"""Records a decision between parameter values as an MLflow run, and tags the runs that it compared."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag

from reprogpt.tracking.store import ensure_experiment, open_store, store_errors

EXPERIMENT = "reprogpt-decisions"
DIGEST = "decision.sha256"
MAX_TAG = 5000  # characters that MLflow stores of a tag


@dataclass(frozen=True)
class DecisionRecord:
    """name: peak_lr by final_val_loss. digest: of question, runs and values, so equal for the same decision.

    run_ids: of the runs compared. table: all of it, for decision.json. report: the lines that were printed.
    """

    name: str
    keys: tuple[str, ...]
    digest: str
    params: dict[str, str]
    metrics: dict[str, float]
    verdict: str
    run_ids: list[str]
    table: dict[str, Any]
    report: str


def record_decision(record: DecisionRecord, figures: Sequence[Path]) -> str:
    """Write the decision into the experiment EXPERIMENT, once; returns the id of its run.

    Each compared run gets the tag decision.KEY with that id. Raises TrackingError if the store can't be used.
    """
    client, _ = open_store()
    with store_errors():
        experiment_id = ensure_experiment(client, EXPERIMENT)
        found = client.search_runs([experiment_id], f"tags.`{DIGEST}` = '{record.digest}'", max_results=1)
        if found and found[0].info.status == "FINISHED":
            return str(found[0].info.run_id)
        # A record that was interrupted is completed.
        run_id = found[0].info.run_id if found else client.create_run(experiment_id, run_name=record.name).info.run_id
        tags = {
            DIGEST: record.digest,
            "verdict": record.verdict[:MAX_TAG],
            "run_ids": ",".join(record.run_ids)[:MAX_TAG],
            "mlflow.note.content": f"```\n{record.report}```\n"[:MAX_TAG],
        }
        client.log_batch(
            run_id,
            metrics=[Metric(key, value, 0, 0) for key, value in record.metrics.items()],
            params=[Param(key, value) for key, value in record.params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {
                "decision.json": json.dumps(record.table, indent=2) + "\n",
                "report.txt": record.report,
            }.items():
                path = Path(folder) / name
                path.write_text(text, encoding="utf-8")
                client.log_artifact(run_id, str(path))
        for path in figures:
            client.log_artifact(run_id, str(path), "figures")
        for compared in record.run_ids:
            client.set_tag(compared, f"decision.{'.'.join(record.keys)}", run_id)
        client.set_terminated(run_id)
    return str(run_id)
