"""The trial for a machine with a GPU, on the CPU and a tiny model: it runs, and finds there what must be so."""

import collections
import io
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu


@pytest.fixture(autouse=True)
def matmul_setting_restored() -> Iterator[None]:
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before  # type: ignore[attr-defined]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What the program prints."""
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    written = io.StringIO()
    with redirect_stdout(written):
        gpu.main()
    return written.getvalue()


def test_check_compares_every_combination_with_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs are in this process here: starting one takes longer than ten steps."""

    def run_here(command: list[str], **_: Any) -> SimpleNamespace:
        return SimpleNamespace(returncode=0, stdout=run(monkeypatch, *command[3:]), stderr="")

    monkeypatch.setattr(subprocess, "run", run_here)
    # By torch's own products, as the reference: `auto` takes others on some processors, with other bits.
    smaller = {"emb_dim": 32, "context_length": 16, "stride": 16, "vocab_size": 301, "matmul": "torch"}
    monkeypatch.setattr(gpu, "TINY", gpu.TINY | smaller)
    printed = run(monkeypatch, "check", "--device", "cpu", "--tiny", "--out", str(tmp_path))
    results = json.loads((tmp_path / "gpu-check.json").read_text("utf-8"))
    names = ["fp32", "fp32, accumulate 4", "fp32, activation checkpointing", "fp32, book", "bf16"]
    differences = [results[name]["largest_difference"] for name in names]
    assert differences[0] == differences[2] == differences[3] == 0
    assert 0 <= differences[1] < 1e-5 < differences[4] < 0.01
    assert all(results[name]["waits_in_2_steps"] == {} for name in names)
    assert "largest difference of a loss from the CPU's: 0.0e+00" in printed
    for vocab_size, products, *errors in results["head"]["rows"]:
        assert vocab_size in (1000, 5003)
        assert all(float(error) < (0.01 if products == "bf16" else 1e-6) for error in errors)


def test_waits_are_counted_by_the_place_of_the_package_that_waits() -> None:
    waits: collections.Counter[str] = collections.Counter()
    with gpu.record_waits(waits):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert sum(waits.values()) == 1
