"""A training's MLflow run and display, from before the first step to after the last, over all its starts."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reprogpt.files import file_digest, write_bytes_atomic, write_text_atomic
from reprogpt.params import PARAMS_FILE, load_params
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.pipeline import dvc_md5, is_up_to_date, out_paths, stage_definition
from reprogpt.record.courier import carried
from reprogpt.record.machine import Machine
from reprogpt.record.outbox import Box, open_box
from reprogpt.record.packing import WEIGHTS, record_model
from reprogpt.record.progress import Progress
from reprogpt.record.provenance import corpus_facts, experiment_facts, git_facts, git_patch, read_source
from reprogpt.record.results import record_evaluation, record_plots
from reprogpt.record.store import store_name

STEP_METRICS = ("loss", "lr", "max_grad", "max_grad_clipped", "grad_norm", "train_loss", "val_loss")
TEXT = Path("data/corpus/raw.txt")
TOKENS = {"training": Path("data/tokens/train.npy"), "validation": Path("data/tokens/val.npy")}
PATCH = "uncommitted.patch"


@dataclass(frozen=True)
class RunIdentity:
    """Which training a run is of: run_key, what it is made from; training_id, which of several made from the same.

    kept_for: a path; while it is there, the training may be started again.
    """

    run_key: str
    training_id: str
    kept_for: Path | None

    def tags(self) -> dict[str, str]:
        """What the run is found by."""
        return {
            "run_key": self.run_key,
            "training_id": self.training_id,
            "mlflow.source.name": "stages.train",
            "mlflow.source.type": "LOCAL",
        }


class TrainingFollower:
    """Shows and records a training while it goes on.

    decode: token ids -> text, for samples.
    """

    def __init__(self, box: Box, progress: Progress, decode: Callable[[list[int]], str], total_steps: int) -> None:
        self._box, self._progress, self._decode = box, progress, decode
        self._recorded = {record["step"] for record in box.records() if record["kind"] == "metrics"}
        self._samples: list[str] = []
        self._last_step = -1
        self._machine, self._total_steps = Machine(), total_steps

    def resume(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take the steps of earlier starts, by history.csv's columns and `sample`, and show where this one begins."""
        for record in records:
            self._record(record, {})
        self._progress.resume(self._last_step + 1)

    def step(self, record: Mapping[str, Any]) -> None:
        """Take one step, just done."""
        self._progress.step(record)
        is_evaluated, is_last = record["val_loss"] is not None, record["step"] + 1 == self._total_steps
        measured = {"tokens_per_second": self._progress.tokens_per_second} if is_evaluated else {}
        if is_evaluated or is_last:
            measured |= self._machine.measure()
        with self._machine.recording():
            self._record(record, measured)
        if record["sample"]:
            self._progress.say(" ".join(self._samples[-1].split("\n", 1)[1].split()))

    def finish(self) -> None:
        """Record what training made: model, digests, samples. Its outs must be in place."""
        if self._samples:
            text = self._box.folder / "training.txt"
            write_text_atomic(text, "\n".join(self._samples))
            self._box.append_file(text, "samples")
        record_model(self._box)
        digests = {f"dvc.{out}.md5": dvc_md5(Path(out)) for out in out_paths(stage_definition("train"))}
        self._box.append("tags", values=digests | {"weights.sha256": file_digest(WEIGHTS)})
        # The same bits as before: DVC will skip the later stages, and their results are these already.
        if is_up_to_date("evaluate"):
            record_evaluation(self._box, load_params(EvaluateParams).model_dump(), self._last_step)
        if is_up_to_date("plot"):
            record_plots(self._box)

    def _record(self, record: Mapping[str, Any], more: Mapping[str, float | None]) -> None:
        """Put a step into the box, unless an earlier start has: a point must keep the time it was first given."""
        self._last_step = record["step"]
        if record["sample"]:
            self._samples.append(f"epoch {record['epoch'] + 1}\n{self._decode(record['sample'])}\n")
        if record["step"] in self._recorded:
            return
        points = {key: record[key] for key in STEP_METRICS} | dict(more)
        if record["val_loss"] is not None:
            points["tokens_seen"] = record["tokens_seen"]
        there = {key: value for key, value in points.items() if value is not None}
        self._box.append("metrics", step=record["step"], values=there)


@contextmanager
def follow_training(
    identity: RunIdentity,
    params: Mapping[str, Any],
    environment: Mapping[str, str],
    extent: Mapping[str, int],
    decode: Callable[[list[int]], str],
) -> Iterator[TrainingFollower]:
    """Make or take up the training's MLflow run and a progress display; the run ends as the block does.

    params: train's. environment: provenance.environment_facts. extent: total_steps, and whatever else of the training's
    size a reader would like to know. decode: token ids -> text, for samples.
    """
    source, experiment = read_source(), experiment_facts()
    if "path" in source:
        warn_of_fallback(source["path"])
    name = experiment.get("dvc.experiment", f"repro-{identity.run_key[:8]}")
    box, progress = open_box(identity.training_id), Progress(extent["total_steps"])
    if next(box.records(), None) is None:
        tags = {**git_facts(), **experiment, **corpus_facts(source), **environment, **_tokens(), **identity.tags()}
        tags |= {key: str(value) for key, value in extent.items()}
        kept = {"kept_for": str(identity.kept_for)} if identity.kept_for else {}
        facts = {"name": name, "tags": tags, "params": dict(params), "datasets": _datasets(source)}
        box.append("training", store=store_name(), **facts, **kept)
    else:
        box.append("tags", values=experiment)
    _append_origin(box)
    box.append("start", name=name)
    box.append("description")
    try:
        with carried(box):
            yield TrainingFollower(box, progress, decode, extent["total_steps"])
    finally:
        progress.close()


def _tokens() -> dict[str, str]:
    """Tags with the digests of text and tokens, by the names that train's outs get, too, and the numbers of tokens."""
    digests = {f"dvc.{path}.md5": dvc_md5(path) for path in (TEXT, *TOKENS.values()) if path.exists()}
    numbers = {f"tokens.{part}": str(len(np.load(path, mmap_mode="r"))) for part, path in TOKENS.items()}
    return digests | numbers


def _datasets(source: Mapping[str, Any]) -> list[dict[str, str]]:
    """The training's inputs, named after their text, as MLflow's datasets."""
    text = Path(source.get("path") or source.get("url") or "unknown").stem
    return [
        {"name": f"{text}-{path.stem}", "digest": dvc_md5(path), "path": str(path), "context": context}
        for context, path in TOKENS.items()
    ]


def _append_origin(box: Box) -> None:
    """params.yaml, and what the commit lacks of the code, unless an earlier start has added them."""
    there = {Path(record["kept"]).name for record in box.records() if record["kind"] == "file"}
    if PARAMS_FILE.name not in there:
        box.append_file(PARAMS_FILE, "")
    patch = git_patch()
    if patch and PATCH not in there:
        write_bytes_atomic(box.folder / PATCH, patch)
        box.append_file(box.folder / PATCH, "")


def warn_of_fallback(path: str) -> None:
    """Say on the terminal that another text than the one asked for is trained on."""
    print(
        f"\n  WARNING: this trains on the bundled text {path}, not on corpus_url, whose host could not be\n"
        "  reached. The numbers are those of another text. With a network:  dvc repro -f fetch  and  dvc repro\n",
        file=sys.stderr,
    )
