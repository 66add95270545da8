"""On fake cuda tensors: no operation mixes devices, nothing raises, and a step waits for no copy.

What a GPU computes is not tested here: fake tensors have no values. `python -m benchmarks.gpu check` does that on one.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TRAININGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "accumulate": {"precision": "bf16", "accumulate": 2},
    "activation checkpointing": {"precision": "bf16", "activation_checkpointing": True},
    "book": {"random_order": "book"},
    "book, activation checkpointing": {"random_order": "book", "activation_checkpointing": True},
    "biases, no dropout, odd vocabulary": {"qkv_bias": True, "drop_rate": 0.0, "vocab_size": 301},
}


def build_library(folder: Path) -> Path:
    """Compile fake_cuda.cpp against the installed torch; skips the test where that is not possible."""
    compiler = next((name for name in ("g++", "c++", "clang++") if shutil.which(name)), None)
    if compiler is None:
        pytest.skip("fake cuda tensors need a C++ compiler (Debian: apt-get install g++)")
    if sys.platform != "linux" or torch.backends.cuda.is_built():
        pytest.skip("fake cuda tensors need a build of torch for the CPU, on Linux")
    home = Path(torch.__file__).parent
    library = folder / "fake_cuda.so"
    include = [f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}"]
    options = ["-shared", "-fPIC", "-std=c++20", *include, f"-L{home / 'lib'}"]
    source = Path(__file__).with_name("fake_cuda.cpp")
    command = [compiler, *options, str(source), "-o", str(library), "-lc10", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return library


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each of TRAININGS waited for. A process of its own: the library must be loaded before torch."""
    library = build_library(tmp_path_factory.mktemp("fake_cuda"))
    command = [sys.executable, "-m", "tests.gpu.fake_training", str(library), json.dumps(TRAININGS)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", TRAININGS)
def test_steps_wait_for_no_copy_and_their_records_are_one(results: dict[str, dict[str, Any]], name: str) -> None:
    """Batches come from pinned memory, and the metrics of three steps go to the host together."""
    assert results[name]["devices"] == ["cuda"]
    assert results[name]["steps"] == {}
    assert results[name]["fetched"] == [3, {"values to host": 1}]


@pytest.mark.parametrize("name", TRAININGS)
def test_an_evaluation_copies_four_times_a_forward_pass(results: dict[str, dict[str, Any]], name: str) -> None:
    """Inputs and targets there, summed loss and hits back; a batch of each split, in `accumulate` parts."""
    num_forwards = 2 * TRAININGS[name].get("accumulate", 1)
    assert results[name]["evaluation"] == {"tensor to device": 2 * num_forwards, "value to host": 2 * num_forwards}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_sample_copies_twice_a_token(results: dict[str, dict[str, Any]], name: str) -> None:
    """A prompt of two tokens, and three that are generated: ids there, logits back."""
    assert results[name]["sample"] == [5, {"tensor to device": 3, "tensor to host": 3}]


@pytest.mark.parametrize("name", TRAININGS)
def test_a_checkpoint_has_weights_and_moments_of_the_device_and_loads_onto_it(
    results: dict[str, dict[str, Any]], name: str
) -> None:
    """31 weights, 6 more with biases, each with two moments; with the book's policy its state, two generators'."""
    num_weights = 37 if TRAININGS[name].get("qkv_bias") else 31
    randomness = {"cpu torch.int64": 2, "cpu torch.uint8": 2} if name.startswith("book") else {}
    assert results[name]["checkpoint"] == {"cuda torch.float32": 3 * num_weights, **randomness}
    assert results[name]["step after loading"] == {}
