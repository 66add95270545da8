"""Which trainings of this repository made which weights.

Clones that share a store have equal bits: the weights alone don't tell their runs apart.
"""

import json
import os
from contextlib import suppress

from reprogpt.files import parse_json
from reprogpt.paths import state_dir

_FILE = "trainings.jsonl"


def note_training(training_id: str, weights_sha256: str) -> None:
    """Note the training that made these weights. Does nothing if the disk can't take it."""
    entry = {"weights": weights_sha256, "training_id": training_id, "experiment": os.environ.get("DVC_EXP_NAME")}
    with suppress(OSError), (state_dir() / _FILE).open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(entry))  # the newline first: a line that was cut short must not spoil the next


def find_training(weights_sha256: str) -> str | None:
    """The id of the latest training here that made these weights, one of the present DVC experiment before others.

    None if none here did: they were pulled, for example.
    """
    entries = [entry for entry in _entries() if entry.get("weights") == weights_sha256]
    of_experiment = [entry for entry in entries if entry.get("experiment") == os.environ.get("DVC_EXP_NAME")]
    candidates = of_experiment or entries
    return candidates[-1].get("training_id") if candidates else None


def _entries() -> list[dict[str, str | None]]:
    """The noted trainings, the latest last; without lines that are damaged."""
    entries = []
    try:
        lines = (state_dir() / _FILE).read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        with suppress(ValueError):
            entries.append(parse_json(line))
    return entries
