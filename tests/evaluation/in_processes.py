"""Evaluates a tiny model in all processes of a torchrun; rank 0 prints the results' bits as JSON.

Run as `torchrun ... -m tests.evaluation.in_processes`.
"""

import json

import numpy as np

from reprogpt.data.tokens import load_encoding
from reprogpt.distributed.launcher import worker_errors
from reprogpt.distributed.process_group import ProcessGroup, init_process_group
from reprogpt.evaluation import final_metrics as results
from tests.tiny import CPU, tiny_model


def evaluate(group: ProcessGroup) -> dict[str, str]:
    """Hexadecimal results of a training split of 23 rows, of which 11 are taken, and 9 validation rows."""
    results.BATCHES_PER_REDUCTION = 2  # several exchanges
    ids = np.random.default_rng(0).integers(0, 64, 8 * 32 + 1).astype(np.uint16)
    found = results.final_metrics(
        tiny_model(),
        load_encoding("gpt2"),
        ids[: 8 * 23 + 1],
        ids[8 * 23 :],
        batch_size=2,
        numerics=CPU,
        max_train_tokens=88,
        group=group,
    )
    return {key: value.hex() for key, value in found.items()}


if __name__ == "__main__":
    with worker_errors(), init_process_group("cpu") as group:
        found = evaluate(group)
        if group.is_first:
            print(json.dumps(found))
