"""Memory of the stages does not grow with the text. `make large` measures the same, and rates, on a gigabyte."""

from pathlib import Path

import pytest

from benchmarks.large import Corpus, Ran, write_text

LARGE_BYTES = 20_000_000
# What a stage may hold more with 20 MB of text than with 100 kB. The text takes 20 MB as bytes and, as it has an emoji,
# 75 MB as a string; its tokens 10 MB, and as rows of int64 80 MB. Tokenize has an encoding for each core. Train's peak
# differs by 30 MiB from run to run where other processes keep its threads waiting.
ALLOWED_MIB = {"fetch": 8, "split": 8, "tokenize": 50, "train": 55}

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux reports resident memory")


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    small, large = Corpus(tmp_path / "small", 100_000), Corpus(tmp_path / "large", LARGE_BYTES)
    assert large.num_bytes >= LARGE_BYTES
    ran: dict[str, tuple[Ran, Ran]] = {}
    for stage in ("fetch", "split", "tokenize", "train"):
        seconds = 0 if stage == "train" else None
        ran[stage] = small.run(stage, seconds=seconds, cores=2), large.run(stage, seconds=seconds, cores=2)
    raw, train, val = (large.folder / f"data/corpus/{name}.txt" for name in ("raw", "train", "val"))
    assert train.stat().st_size + val.stat().st_size == raw.stat().st_size == large.num_bytes
    assert (large.folder / "data/tokens/train.npy").stat().st_size > 9_000_000
    grown = {stage: of_large.peak_mib - of_small.peak_mib for stage, (of_small, of_large) in ran.items()}
    assert {stage: mib for stage, mib in grown.items() if mib > ALLOWED_MIB[stage]} == {}, grown
    assert all(run.first_step_seconds for run in ran["train"])


def test_the_text_is_always_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_text(tmp_path / name, 300_000)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    text = (tmp_path / "a").read_text("utf-8")
    assert 300_000 <= len(text.encode()) < 450_000 and len(text) < len(text.encode())
