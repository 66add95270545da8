"""The whole train stage against the plain training: evaluations, samples, logging, checkpoint and all.

python -m benchmarks.whole PARAMS      the plain training itself, in the current folder (whole.py calls it)
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML

from benchmarks.baseline import MODEL_KEYS, PlainGPT, PlainPlan, batches_of, plain_training
from benchmarks.report import TEXT
from benchmarks.work import CONTENDERS, prompt_of, read_params
from reprogpt.data.windows import windows
from reprogpt.training.schedule import plan_training
from tools.workspace import copy_workspace


def measure_whole(params_file: Path) -> dict[str, float]:
    """Seconds from start to end of one training of each contender, one after the other, on the bundled text."""
    seconds = {}
    for name in CONTENDERS:
        with tempfile.TemporaryDirectory() as folder:
            clone = _prepared_clone(Path(folder), params_file, "bf16" if name == "bf16" else "fp32")
            plain = [sys.executable, "-m", "benchmarks.whole", str(clone / "params.yaml")]
            command = plain if name == "book" else [sys.executable, "-m", "stages.train"]
            started = time.perf_counter()
            subprocess.run(command, cwd=clone, env=_environment(clone), stdout=subprocess.DEVNULL, check=True)
            seconds[name] = time.perf_counter() - started
    return seconds


def _prepared_clone(folder: Path, params_file: Path, precision: str) -> Path:
    """A copy of this workspace, its text tokenized, with these parameters."""
    clone = copy_workspace(folder / "clone")
    yaml = YAML()
    values: dict[str, Any] = yaml.load(params_file)
    values |= {"corpus_url": TEXT.as_uri(), "corpus_sha256": "", "precision": precision, "device": "cpu"}
    with (clone / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)
    for stage in ("fetch", "split", "tokenize"):
        command = [sys.executable, "-m", f"stages.{stage}"]
        subprocess.run(command, cwd=clone, env=_environment(clone), check=True, capture_output=True)
    return clone


def _environment(clone: Path) -> dict[str, str]:
    """DVC_ROOT, as DVC would set it; the clone's own code and its own MLflow store."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    return env | {"DVC_ROOT": str(clone), "PYTHONPATH": os.pathsep.join([str(clone / "src"), str(clone)])}


def train_plainly(params_file: Path) -> None:
    """The plain training on data/tokens of the current folder, with the checkpoint at its end."""
    params = read_params(params_file)
    cut = {"context_length": params.context_length, "stride": params.stride}
    rows = {
        part: [torch.from_numpy(side[:]) for side in windows(np.load(f"data/tokens/{part}.npy"), **cut)]
        for part in ("train", "val")
    }
    torch.manual_seed(params.seed)
    model = PlainGPT(**{key: getattr(params, key) for key in MODEL_KEYS})
    steps = plan_training(len(rows["train"][0]), params)
    rest = {
        key: getattr(params, key) for key in PlainPlan.__dataclass_fields__ if key not in ("prompt", "warmup_steps")
    }
    plan = PlainPlan(**rest, prompt=prompt_of(params), warmup_steps=steps.warmup_steps)
    batches = batches_of(*rows["train"], batch_size=params.batch_size, shuffle=True)
    val_batches = batches_of(*rows["val"], batch_size=params.batch_size, shuffle=False)
    for _ in plain_training(model, batches, val_batches, plan):
        pass
    torch.save(model.state_dict(), "plain.pth")


if __name__ == "__main__":
    train_plainly(Path(sys.argv[1]))
