"""Tiny trainings in all processes of a torchrun; rank 0 prints the records and weights digest of each as JSON.

Run as `torchrun ... -m tests.distributed.in_processes FOLDER TRAININGS`. TRAININGS: JSON, a list of changes to the
parameters, with "name", a subfolder of FOLDER for checkpoints, "stop_after", a step at which the last process is
asked to stop, and "log_interval", the number of steps whose metrics are copied from the device together.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from reprogpt.distributed.launcher import worker_errors
from reprogpt.distributed.process_group import ProcessGroup, init_process_group
from reprogpt.process.stop import StopRequest
from reprogpt.training.build import Training
from reprogpt.training.resume import CheckpointedTraining
from reprogpt.training.run_dir import RunDirLock
from tests.tiny import tiny_training


class StopAfter(StopRequest):
    """A request to the last process to stop once `step` has run; none if `step` is 0."""

    def __init__(self, training: Training, step: int) -> None:
        super().__init__()
        self._training, self._step = training, step

    def reason(self) -> BaseException | None:
        group = self._training.group
        is_asked = 0 < self._step < self._training.step and group.rank == group.size - 1
        return KeyboardInterrupt() if is_asked else None


def run(group: ProcessGroup, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """One training from its latest checkpoint on: how it ended, steps run, all records, digest of the weights."""
    name, stop_after = changes.pop("name"), changes.pop("stop_after", 0)
    log_interval = changes.pop("log_interval", 1)
    training = tiny_training(num_rows=121, group=group, **changes)
    training.log_interval = log_interval
    (folder / name).mkdir(exist_ok=True)
    run_dir_lock = RunDirLock("0" * 32, folder / name, {"workspace": False}) if group.is_first else None
    checkpointed = CheckpointedTraining(training, run_dir_lock)
    end = "finished"
    steps = []
    try:
        for record in checkpointed.run_until(StopAfter(training, stop_after)):
            steps.append(record.step)
    except BaseException as stopped:
        end = type(stopped).__name__
    weights = group.gather_state(training.model.state_dict())
    digest = hashlib.sha256(b"".join(weights[key].numpy().tobytes() for key in sorted(weights)))
    kept = checkpointed.kept_weights()
    kept_digest = hashlib.sha256(b"".join(kept[key].numpy().tobytes() for key in sorted(kept)))
    records = [[r.loss, r.max_grad, r.grad_norm, r.train_loss, r.val_loss, r.sample] for r in checkpointed.records]
    return {
        "name": name,
        "end": end,
        "steps": steps,
        "records": records,
        "weights": digest.hexdigest(),
        "kept": kept_digest.hexdigest(),
    }


def main(folder: Path, trainings: list[dict[str, Any]]) -> None:
    with worker_errors(), init_process_group("cpu") as group:
        results = [run(group, folder, changes) for changes in trainings]
        if group.is_first:
            print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
