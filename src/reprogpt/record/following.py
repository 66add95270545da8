"""A training's MLflow run and display, from before the first step to after the last."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reprogpt.files import file_digest
from reprogpt.numerics import Numerics
from reprogpt.params import PARAMS_FILE, load_params
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.pipeline import dvc_md5, is_up_to_date, out_paths, stage_definition
from reprogpt.record.progress import Progress
from reprogpt.record.provenance import corpus_facts, environment_facts, experiment_facts, git_facts, read_source
from reprogpt.record.results import record_evaluation, record_plots
from reprogpt.record.tracking import TrackedRun, run_status, start_run

STEP_METRICS = ("loss", "lr", "max_grad", "max_grad_clipped", "grad_norm", "train_loss", "val_loss")
TOKENS = {"training": Path("data/tokens/train.npy"), "validation": Path("data/tokens/val.npy")}
MODEL = Path("data/model")


class TrainingFollower:
    """Shows and records a training while it goes on."""

    def __init__(self, run: TrackedRun, progress: Progress) -> None:
        self._run, self._progress = run, progress
        self._samples: list[str] = []
        self._last_step = 0

    def step(self, record: Mapping[str, Any]) -> None:
        """Take one step's values, by history.csv's columns."""
        self._last_step = record["step"]
        points = {key: record[key] for key in STEP_METRICS}
        if record["val_loss"] is not None:
            points |= {"tokens_seen": record["tokens_seen"], "tokens_per_second": self._progress.tokens_per_second}
        self._run.log_metrics(points, record["step"])
        self._progress.step(record)

    def sample(self, epoch: int, text: str) -> None:
        """Take the sample after a 0-based epoch."""
        self._progress.say(" ".join(text.split()))
        self._samples.append(f"epoch {epoch + 1}\n{text}\n")

    def finish(self) -> None:
        """Record what training made: checkpoint, digests, samples. Its outs must be in place."""
        if self._samples:
            self._run.log_text("\n".join(self._samples), "samples/training.txt")
        self._run.log_folder(MODEL, "checkpoint")
        digests = {f"dvc.{out}.md5": dvc_md5(Path(out)) for out in out_paths(stage_definition("train"))}
        self._run.set_tags(digests | {"weights.sha256": file_digest(MODEL / "model.safetensors")})
        # The same bits as before: DVC will skip the later stages, and their results are these already.
        if is_up_to_date("evaluate"):
            record_evaluation(self._run, load_params(EvaluateParams).model_dump(), self._last_step)
        if is_up_to_date("plot"):
            record_plots(self._run)


@contextmanager
def follow_training(
    params: Mapping[str, Any], *, run_key: str, total_steps: int, numerics: Numerics
) -> Iterator[TrainingFollower]:
    """Make the training's MLflow run and a progress display; the run ends as the block does."""
    source, experiment = read_source(), experiment_facts()
    if "path" in source:
        warn_of_fallback(source["path"])
    name = experiment.get("dvc.experiment", f"repro-{run_key[:8]}")
    tags = {**git_facts(), **experiment, **corpus_facts(source), **environment_facts(numerics), "run_key": run_key}
    run = start_run(name, {**tags, "mlflow.source.name": "stages.train", "mlflow.source.type": "LOCAL"})
    progress = Progress(total_steps)
    try:
        with run_status(run):
            run.log_params(params)
            run.log_file(PARAMS_FILE)
            text = Path(source.get("path") or source.get("url") or "unknown").stem
            for context, path in TOKENS.items():
                run.log_dataset(f"{text}-{path.stem}", dvc_md5(path), str(path), context)
            yield TrainingFollower(run, progress)
    finally:
        progress.close()


def warn_of_fallback(path: str) -> None:
    """Say on the terminal that another text than the one asked for is trained on."""
    print(
        f"\n  WARNING: this trains on the bundled text {path}, not on corpus_url, whose host could not be\n"
        "  reached. The numbers are those of another text. With a network: dvc repro -f fetch\n",
        file=sys.stderr,
    )
