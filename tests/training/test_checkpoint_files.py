"""Checkpoints on disk."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reprogpt.training.checkpoint_files import (
    CorruptCheckpointError,
    commit,
    committed,
    read,
    remove,
    slots,
    write,
)

TENSORS = {
    "matrix": torch.arange(6, dtype=torch.float32).view(2, 3) / 7,
    "transposed": torch.arange(6, dtype=torch.float32).view(2, 3).T,
    "step": torch.tensor(5),
    "generator_state": torch.tensor([1, 255, 3], dtype=torch.uint8),
    "many": torch.arange(1 << 20, dtype=torch.int64),
}
TRAINING_ID = "1" * 32
LINES = '{"note": "ü"}\n{"note": 2}\n'.encode()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A committed checkpoint of TENSORS."""
    path = slots(tmp_path)[0]
    commit(path, 7, write(path, TENSORS), LINES, TRAINING_ID)
    return path


def test_a_committed_checkpoint_is_read_back_bit_for_bit(checkpoint: Path) -> None:
    step, tensors, records = read(checkpoint, TRAINING_ID)
    assert (step, records) == (7, LINES)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor), name


def test_the_file_is_safetensors_for_other_programs(checkpoint: Path) -> None:
    assert torch.equal(load_file(checkpoint.with_suffix(".safetensors"))["transposed"], TENSORS["transposed"])


def test_without_a_manifest_it_is_not_a_checkpoint(tmp_path: Path) -> None:
    write(slots(tmp_path)[0], TENSORS)
    assert committed(tmp_path) == []


@pytest.mark.parametrize("steps", [(9, 10), (10, 9)])
def test_the_later_step_comes_first(tmp_path: Path, steps: tuple[int, int]) -> None:
    for slot, step in zip(slots(tmp_path), steps, strict=True):
        commit(slot, step, write(slot, {}), b"", TRAINING_ID)
    assert [read(checkpoint, TRAINING_ID)[0] for checkpoint in committed(tmp_path)] == [10, 9]


def test_an_overwritten_checkpoint_counts_only_once_it_is_committed_again(checkpoint: Path, tmp_path: Path) -> None:
    fewer = {"step": TENSORS["step"], "matrix": TENSORS["matrix"] + 1}
    digests = write(checkpoint, fewer)
    assert committed(tmp_path) == []
    commit(checkpoint, 8, digests, b"other", TRAINING_ID)
    step, tensors, records = read(checkpoint, TRAINING_ID)
    assert tensors.keys() == fewer.keys() and torch.equal(tensors["matrix"], fewer["matrix"])
    assert (step, records) == (8, b"other")


@pytest.mark.parametrize(
    "change",
    ["flip", "cut", "gone", "other records", "no records", "no digest", "no manifest", "not a mapping"],
)
def test_a_corrupt_checkpoint_is_refused(checkpoint: Path, change: str) -> None:
    tensors, records, manifest = (checkpoint.with_suffix(suffix) for suffix in (".safetensors", ".jsonl", ".json"))
    content = bytearray(tensors.read_bytes())
    if change == "flip":
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif change == "cut":
        os.truncate(tensors, len(content) - 4096)
    elif change == "gone":
        tensors.unlink()
    elif change == "other records":
        records.write_bytes(LINES[:-2])
    elif change == "no records":
        records.unlink()
    elif change == "no digest":
        manifest.write_text('{"step": 7}')
    elif change == "no manifest":
        manifest.write_bytes(b"\0" * 100)  # as a power cut may leave a file whose name was written first
    else:
        manifest.write_text("7")
    with pytest.raises(CorruptCheckpointError, match="checkpoint-a"):
        read(checkpoint, TRAINING_ID)


def test_removing_one_checkpoint_leaves_the_other(tmp_path: Path, checkpoint: Path) -> None:
    other = slots(tmp_path)[1]
    write(other, TENSORS)
    remove(other)
    assert committed(tmp_path) == [checkpoint]
    remove(checkpoint)
    assert list(tmp_path.iterdir()) == []


def copied(checkpoint: Path, run_dir: Path) -> Path:
    """A copy of the checkpoint's three files in another run directory."""
    run_dir.mkdir()
    for path in checkpoint.parent.glob(f"{checkpoint.name}.*"):
        shutil.copy(path, run_dir)
    return run_dir / checkpoint.name


def test_a_checkpoint_of_another_training_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match=f"by another training: training_id {TRAINING_ID}, not {'2' * 32}"):
        read(checkpoint, "2" * 32)


def test_a_checkpoint_in_another_run_directory_is_refused_even_with_its_training_id(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(CorruptCheckpointError, match=f"by another training: run_dir {tmp_path.name}, not other"):
        read(copied(checkpoint, tmp_path / "other"), TRAINING_ID)


def test_a_manifest_that_names_no_training_is_refused(checkpoint: Path) -> None:
    manifest = json.loads(checkpoint.with_suffix(".json").read_bytes())
    del manifest["training_id"]
    checkpoint.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptCheckpointError, match="by another training: training_id None"):
        read(checkpoint, TRAINING_ID)
