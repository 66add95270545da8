"""The record of a training in full, as the text of history.csv, and its summary for train.json."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from reprogpt.files import write_text_atomic
from reprogpt.training.loop import StepRecord
from reprogpt.training.schedule import Plan

COLUMNS = [field.name for field in fields(StepRecord) if field.name != "sample"]
EVALUATED = ["step", "epoch", "tokens_seen", "train_loss", "val_loss"]


def history_csv(records: Sequence[StepRecord]) -> str:
    """One line a step under a header of StepRecord's field names; samples are left out.

    Numbers are written so that reading them gives the same bits; a loss that was not evaluated is empty.
    """
    return _csv(COLUMNS, records)


def evaluations_csv(records: Sequence[StepRecord]) -> str:
    """The evaluated steps of the history alone: DVC's plots draw an empty cell as 0."""
    return _csv(EVALUATED, [record for record in records if record.val_loss is not None])


def write_history(history: Path, evaluations: Path, records: Sequence[StepRecord]) -> None:
    """Write history_csv and evaluations_csv, each whole or not at all."""
    write_text_atomic(history, history_csv(records))
    write_text_atomic(evaluations, evaluations_csv(records))


def _csv(columns: Sequence[str], records: Sequence[StepRecord]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in records)
    return text.getvalue()


def summary(records: Sequence[StepRecord], plan: Plan, digests: Mapping[str, str]) -> dict[str, Any]:
    """Length of the training, and where its evaluations ended and were best (absent without evaluations).

    digests: what it was made from, by name. Each is in a list of its own, which DVC leaves out of its tables of
    numbers: there, one would take half of a terminal's width.
    """
    facts: dict[str, Any] = {name: [digest] for name, digest in digests.items()} | asdict(plan)
    evaluated = [(record.val_loss, record) for record in records if record.val_loss is not None]
    if evaluated:
        last, (best_val_loss, best) = evaluated[-1][1], min(evaluated, key=lambda pair: pair[0])
        facts |= {"last_train_loss": last.train_loss, "last_val_loss": last.val_loss}
        facts |= {"best_val_loss": best_val_loss, "best_step": best.step}
    return facts
