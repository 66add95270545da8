"""A short training in the numerics that params.yaml in the current folder asks for; prints digests as JSON.

Run as `python -m tests.short_training SHAPE`, with these variables, all optional:
NUM_THREADS: as if torch found so many cores.
LIBRARY: MKL, where portable numerics would choose oneDNN.
PRETEND_INTEL: make MKL take this processor for one of Intel's, by overwriting in memory the function that it asks.
DROP: a part of portable numerics that is left out: an environment variable, a replaced kernel, or flash_sdp.
"""

import ctypes
import hashlib
import json
import os
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

# isort: off
from tests import dropped_part  # before stages, whose variables it may leave out
import stages  # noqa: F401 - before torch, as in every stage: it sets the environment

# isort: on
import numpy as np
import torch

from reprogpt.evaluation.losses import sum_losses
from reprogpt.model.generate import generate
from reprogpt.numerics import portable
from reprogpt.numerics.device import set_up_numerics
from reprogpt.params.loader import PARAMS_FILE, read_mapping
from reprogpt.params.train import TrainParams
from reprogpt.step_record import StepRecord
from reprogpt.training.build import training_from_ids
from reprogpt.training.loop import train
from tests.tiny import PARAMS, USUAL_NUM_THREADS

SHAPES: dict[str, dict[str, Any]] = {
    # Odd numbers, so that no thread's share ends where a vector ends.
    "small": {"vocab_size": 3001, "context_length": 253, "emb_dim": 198, "n_heads": 3, "n_layers": 2, "n_epochs": 1},
    "wide": {"vocab_size": 20011, "context_length": 256, "emb_dim": 768, "n_heads": 12, "n_layers": 2, "n_epochs": 1},
    # In the book's order, where dropout draws from torch's generator.
    "small book": {
        "vocab_size": 301,
        "context_length": 61,
        "emb_dim": 66,
        "n_heads": 3,
        "n_layers": 1,
        "n_epochs": 1,
        "random_order": "book",
    },
    "full": {"vocab_size": 50257, "context_length": 256, "emb_dim": 768, "n_heads": 12, "n_layers": 12, "n_epochs": 1},
}


def pretend_intel() -> None:
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so"))
    for name in ("mkl_serv_intel_cpu_true", "mkl_serv_intel_cpu"):
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        assert address is not None
        page = address & ~4095
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), 8192, 7) == 0  # read, write, execute
        ctypes.memmove(address, b"\xb8\x01\x00\x00\x00\xc3", 6)  # mov eax, 1; ret


def digest_of(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:12]


def digest_of_text(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def run(shape: dict[str, Any], numerics_value: str) -> dict[str, str]:
    """Digests of the weights before and after, of every recorded number, an evaluation, a sample, and logarithms."""
    numerics = set_up_numerics(device="cpu", precision="fp32", matmul="auto", numerics=numerics_value)
    lengths = {"stride": shape["context_length"], "eval_freq": 2, "warmup_ratio": 0.3, "sample_freq": 1}
    params = TrainParams(**PARAMS | lengths | {"matmul": "auto", "numerics": numerics_value} | shape)
    num_ids = 6 * params.context_length + 1
    ids = np.random.default_rng(0).integers(0, params.vocab_size, num_ids).astype(np.uint16)
    training = training_from_ids(ids, ids[: num_ids // 2], prompt=[1], params=params, numerics=numerics)

    def weights() -> str:
        return digest_of(*(tensor.numpy() for tensor in training.model.state_dict().values()))

    digests = {"untrained": weights()}
    records = [record for record in train(training) if isinstance(record, StepRecord)]
    rows = training.val_rows
    evaluated = sum_losses(training.model, rows.inputs, rows.targets, batch_size=2, numerics=numerics)
    generator = torch.Generator().manual_seed(3)
    sampled = list(generate(training.model, [5], 6, temperature=1.0, top_k=25, generator=generator))
    # The losses take too few logarithms to show one that is rounded in another way.
    logarithms = (torch.arange(1, 10_001) / 10_000).log()
    numbers = [astuple(record) for record in records]
    digests |= {"weights": weights(), "records": digest_of_text(numbers), "log": digest_of(logarithms.numpy())}
    return digests | {"evaluation": digest_of_text(astuple(evaluated)), "sample": digest_of_text(sampled)}


if __name__ == "__main__":
    if os.environ.get("PRETEND_INTEL"):
        pretend_intel()
    if os.environ.get("PRETEND_INTEL") or os.environ.get("LIBRARY") == "MKL":
        portable.is_onednn_faster = lambda: False
    dropped_part.leave_out_of_torch()
    torch.set_num_threads(int(os.environ.get("NUM_THREADS") or USUAL_NUM_THREADS))
    print(json.dumps(run(SHAPES[sys.argv[1]], read_mapping(PARAMS_FILE)["numerics"])))
