"""Resume points on disk."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reprogpt.training.points import (
    DamagedPointError,
    copy_out,
    point_path,
    read_point,
    remove_all,
    seal,
    sealed_points,
)

TENSORS = {
    "matrix": torch.arange(6, dtype=torch.float32).view(2, 3) / 7,
    "turned": torch.arange(6, dtype=torch.float32).view(2, 3).T,
    "step": torch.tensor(5),
    "stream": torch.tensor([1, 255, 3], dtype=torch.uint8),
    "many": torch.arange(1 << 20, dtype=torch.int64),
}


@pytest.fixture
def point(tmp_path: Path) -> Path:
    """A sealed point of TENSORS."""
    path = point_path(tmp_path, 7)
    copy_out(path, TENSORS)
    seal(path, {"step": 7, "note": "ü"})
    return path


def test_what_was_sealed_comes_back_bit_for_bit(point: Path) -> None:
    tensors, facts = read_point(point)
    assert facts == {"step": 7, "note": "ü"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor), name


def test_the_file_is_safetensors_for_other_programs(point: Path) -> None:
    assert torch.equal(load_file(point.with_suffix(".safetensors"))["turned"], TENSORS["turned"])


def test_without_its_seal_a_point_is_none(tmp_path: Path) -> None:
    copy_out(point_path(tmp_path, 7), TENSORS)
    assert sealed_points(tmp_path) == []


def test_the_newest_comes_first(tmp_path: Path) -> None:
    for step in (9, 1_000_000_000 - 1, 10):
        copy_out(point_path(tmp_path, step), {})
        seal(point_path(tmp_path, step), {})
    assert [path.name for path in sealed_points(tmp_path)] == ["point-999999999", "point-000000010", "point-000000009"]


@pytest.mark.parametrize("change", ["flip", "cut", "gone", "no digest", "no manifest", "not a mapping"])
def test_a_damaged_point_is_told_from_a_sound_one(point: Path, change: str) -> None:
    tensors, manifest = point.with_suffix(".safetensors"), point.with_suffix(".json")
    content = bytearray(tensors.read_bytes())
    if change == "flip":
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif change == "cut":
        os.truncate(tensors, len(content) - 4096)
    elif change == "gone":
        tensors.unlink()
    elif change == "no digest":
        manifest.write_text('{"step": 7}')
    elif change == "no manifest":
        manifest.write_bytes(b"\0" * 100)  # as a power cut may leave a file whose name was written first
    else:
        manifest.write_text("7")
    with pytest.raises(DamagedPointError, match="point-000000007"):
        read_point(point)


def test_all_points_but_one_are_removed_and_nothing_else(tmp_path: Path, point: Path) -> None:
    other = point_path(tmp_path, 8)
    copy_out(other, TENSORS)
    (tmp_path / "training.json").write_text(json.dumps({}))
    remove_all(tmp_path, but=point)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "point-000000007.json",
        "point-000000007.safetensors",
        "training.json",
    ]
    remove_all(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["training.json"]
