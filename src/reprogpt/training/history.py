"""The full history of a training for history.csv, and its summary for train.json."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from reprogpt.files import write_text_atomic
from reprogpt.params.train import TrainParams
from reprogpt.step_record import EVAL_METRICS, StepRecord
from reprogpt.training.schedule import Plan

COLUMNS = [field.name for field in fields(StepRecord) if field.name != "sample"]
EVALUATION_COLUMNS = ["step", "epoch", "tokens_seen", *EVAL_METRICS]


def history_csv(records: Sequence[StepRecord]) -> str:
    """The text of history.csv: one row per step under StepRecord's field names, without samples.

    Reading the numbers back gives the same bits. A loss that was not evaluated is empty.
    """
    return _csv(COLUMNS, records)


def evaluations_csv(records: Sequence[StepRecord]) -> str:
    """The text of evaluations.csv: the evaluation steps only, since DVC plots draw an empty cell as 0."""
    return _csv(EVALUATION_COLUMNS, [record for record in records if record.val_loss is not None])


def write_history(history: Path, evaluations: Path, records: Sequence[StepRecord]) -> None:
    """Write history_csv and evaluations_csv, each atomically."""
    write_text_atomic(history, history_csv(records))
    write_text_atomic(evaluations, evaluations_csv(records))


def _csv(columns: Sequence[str], records: Sequence[StepRecord]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in records)
    return text.getvalue()


def summary(
    records: Sequence[StepRecord], plan: Plan, params: TrainParams, *, digests: Mapping[str, str], kept_step: int
) -> dict[str, Any]:
    """What train.json holds: the schedule's length, max_norm, and the last and best evaluation, if there are any.

    digests: of what the training was made from, by name. These, kept_step, and what the figures need of the schedule
    become lists of one: DVC leaves lists out of its tables of metrics, which are wide enough without them.
    """
    facts: dict[str, Any] = {"max_norm": params.max_norm}
    in_lists = {
        **digests,
        "lr_decay": params.lr_decay,
        "decay_start": plan.decay_start,
        "first_clipped_step": plan.first_clipped_step,
        "keep": params.keep,
        "kept_step": kept_step,
    }
    facts |= {name: [value] for name, value in in_lists.items()}
    facts |= plan.lengths
    evaluated = [(record.val_loss, record) for record in records if record.val_loss is not None]
    if evaluated:
        _, last = evaluated[-1]
        best_val_loss, best = min(evaluated, key=lambda pair: pair[0])
        facts |= {"last_train_loss": last.train_loss, "last_val_loss": last.val_loss}
        facts |= {"best_val_loss": best_val_loss, "best_step": best.step}
    return facts
