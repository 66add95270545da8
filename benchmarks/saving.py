"""What a checkpoint costs a training: the full-size model, steps with a point among them and steps without.

    python -m benchmarks.saving [PAIRS]

A pair is a block of steps that begins with a point and one that does not, in turn, so that a busy spell
of the machine meets both; a block is longer than a point takes to reach the disk. Printed are the time for
which training waits, what a point costs in all (the medians' difference), and its share of save_seconds.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reprogpt.numerics.allocator import retain_freed_memory
from reprogpt.numerics.device import set_up_numerics
from reprogpt.params.loader import read_mapping
from reprogpt.params.train import TrainParams
from reprogpt.process.stop import StopRequest
from reprogpt.step_record import StepRecord
from reprogpt.training.build import training_from_ids
from reprogpt.training.resume import CheckpointedTraining
from reprogpt.training.run_dir import RunDirLock

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 6  # steps


def block(records: Iterator[StepRecord]) -> float:
    """Seconds that BLOCK steps take."""
    started = time.perf_counter()
    for _ in range(BLOCK):
        next(records)
    return time.perf_counter() - started


def main(pairs: int) -> None:
    """Measure, and print a table."""
    retain_freed_memory()
    values = read_mapping(ROOT / "params.yaml")
    seconds = values["save_seconds"]
    values |= {"eval_freq": 0, "sample_freq": 0, "save_seconds": 0.0, "n_epochs": 1}
    params = TrainParams(**{key: values[key] for key in TrainParams.model_fields})
    numerics = set_up_numerics(**params.arithmetic())
    num_ids = (2 * pairs * BLOCK + 2) * params.batch_size * params.stride + params.context_length + 1
    ids = np.random.default_rng(0).integers(0, params.vocab_size, num_ids).astype(np.uint16)
    training = training_from_ids(ids, ids, prompt=[1], params=params, numerics=numerics)
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        checkpointed = CheckpointedTraining(training, RunDirLock("0" * 32, Path(folder), {"workspace": False}))
        records = checkpointed.run_until(StopRequest())
        next(records)
        with_checkpoint, without, waits = [], [], []
        for _ in range(pairs):
            started = time.perf_counter()
            checkpointed._save()
            waits.append(time.perf_counter() - started)
            with_checkpoint.append(waits[-1] + block(records))
            checkpointed._wait_for_commit()
            without.append(block(records))
    wait, cost = statistics.median(waits), statistics.median(with_checkpoint) - statistics.median(without)
    print(f"a step without        {statistics.median(without) / BLOCK:.2f} s")
    print(f"training waits        {wait:.2f} s a checkpoint ({', '.join(f'{one:.2f}' for one in waits)})")
    print(f"a checkpoint costs    {cost:.2f} s, {cost / seconds:.1%} of save_seconds = {seconds:g}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
