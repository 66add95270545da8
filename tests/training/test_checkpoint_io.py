"""Resume points on disk."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reprogpt.training.checkpoint_io import (
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
    "turned": torch.arange(6, dtype=torch.float32).view(2, 3).T,
    "step": torch.tensor(5),
    "stream": torch.tensor([1, 255, 3], dtype=torch.uint8),
    "many": torch.arange(1 << 20, dtype=torch.int64),
}
LINES = '{"note": "ü"}\n{"note": 2}\n'.encode()


@pytest.fixture
def point(tmp_path: Path) -> Path:
    """A committed point of TENSORS."""
    path = slots(tmp_path)[0]
    commit(path, 7, write(path, TENSORS), LINES)
    return path


def test_what_was_sealed_comes_back_bit_for_bit(point: Path) -> None:
    step, tensors, records = read(point)
    assert (step, records) == (7, LINES)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor), name


def test_the_file_is_safetensors_for_other_programs(point: Path) -> None:
    assert torch.equal(load_file(point.with_suffix(".safetensors"))["turned"], TENSORS["turned"])


def test_without_its_seal_a_point_is_none(tmp_path: Path) -> None:
    write(slots(tmp_path)[0], TENSORS)
    assert committed(tmp_path) == []


@pytest.mark.parametrize("steps", [(9, 10), (10, 9)])
def test_the_later_step_comes_first(tmp_path: Path, steps: tuple[int, int]) -> None:
    for place, step in zip(slots(tmp_path), steps, strict=True):
        commit(place, step, write(place, {}), b"")
    assert [read(point)[0] for point in committed(tmp_path)] == [10, 9]


def test_a_point_written_over_is_none_until_it_is_sealed_and_then_the_new_one(point: Path, tmp_path: Path) -> None:
    fewer = {"step": TENSORS["step"], "matrix": TENSORS["matrix"] + 1}
    digests = write(point, fewer)
    assert committed(tmp_path) == []
    commit(point, 8, digests, b"other")
    step, tensors, records = read(point)
    assert tensors.keys() == fewer.keys() and torch.equal(tensors["matrix"], fewer["matrix"])
    assert (step, records) == (8, b"other")


@pytest.mark.parametrize(
    "change",
    ["flip", "cut", "gone", "other records", "no records", "no digest", "no manifest", "not a mapping"],
)
def test_a_damaged_point_is_told_from_a_sound_one(point: Path, change: str) -> None:
    tensors, records, manifest = (point.with_suffix(suffix) for suffix in (".safetensors", ".jsonl", ".json"))
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
        read(point)


def test_removing_one_leaves_the_other(tmp_path: Path, point: Path) -> None:
    other = slots(tmp_path)[1]
    write(other, TENSORS)
    remove(other)
    assert committed(tmp_path) == [point]
    remove(point)
    assert list(tmp_path.iterdir()) == []
