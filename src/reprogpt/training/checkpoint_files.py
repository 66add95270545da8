"""Checkpoints on disk: tensors as safetensors, step records as JSON lines, and a manifest with a SHA-256 for each.

Training waits only for write(), which hashes the tensors and copies them into the operating system's file cache on
all cores; hashing in a background thread instead would slow the training for longer. commit() flushes to disk and
writes the manifest, and may run in another thread. A checkpoint without a manifest does not count.

Checkpoints alternate between two slots, so the latest committed one stays valid while the next one is written.
write() overwrites a slot's file in place: 2 GB take 0.3 s into pages that the file cache has, and 2 to 5 s into new
ones. safetensors' save_file writes a new file on one core each time: training waited twice as long for it, and a
third checkpoint would need room on the disk.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reprogpt.files import write_bytes_atomic, write_json_atomic

_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}
_TENSORS = ".safetensors"
_RECORDS = ".jsonl"
_MANIFEST = ".json"
_TRAINING_KEYS = ("training_id", "run_dir")


class CorruptCheckpointError(Exception):
    """A checkpoint can't be read, failed its SHA-256 check, or is of another training."""


def slots(run_dir: Path) -> tuple[Path, Path]:
    """The two checkpoints of a run directory, as paths without suffix."""
    return run_dir / "checkpoint-a", run_dir / "checkpoint-b"


def committed(run_dir: Path) -> list[Path]:
    """The checkpoints that have a manifest, the latest step first."""
    with_manifest = [checkpoint for checkpoint in slots(run_dir) if checkpoint.with_suffix(_MANIFEST).exists()]
    return sorted(with_manifest, key=_step, reverse=True)


def write(checkpoint: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write tensors (float32, int64 or uint8) into the file cache; returns the SHA-256 of each.

    From here on, what the slot held before is no longer a checkpoint.
    """
    checkpoint.with_suffix(_MANIFEST).unlink(missing_ok=True)
    arrays = {name: _bytes(tensor) for name, tensor in tensors.items()}
    ends = list(itertools.accumulate(array.numel() for array in arrays.values()))
    begins = [0, *ends[:-1]]
    header = _header(tensors, begins, ends)
    data_start = len(header)
    file = os.open(checkpoint.with_suffix(_TENSORS), os.O_CREAT | os.O_WRONLY, 0o666)  # by the umask
    try:
        os.pwrite(file, header, 0)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            offsets = [data_start + begin for begin in begins]
            digests = list(pool.map(partial(_write_and_hash, file), arrays.values(), offsets))
        os.truncate(file, data_start + sum(array.numel() for array in arrays.values()))
    finally:
        os.close(file)
    return dict(zip(tensors, digests, strict=True))


def commit(checkpoint: Path, step: int, digests: Mapping[str, str], records: bytes, training_id: str) -> None:
    """Flush what write() wrote to disk, then write the records and the manifest: from here on it is a checkpoint.

    step: 0-based number of the next step. digests: from write(). records: JSON lines. training_id: of the run
    directory; the manifest contains it and the directory's name, the fingerprint of what the training depends on.
    """
    with checkpoint.with_suffix(_TENSORS).open("rb") as file:
        os.fsync(file.fileno())
    write_bytes_atomic(checkpoint.with_suffix(_RECORDS), records)
    all_digests = {**digests, _RECORDS: hashlib.sha256(records).hexdigest()}
    manifest = {**_training(checkpoint, training_id), "step": step, "sha256": all_digests}
    write_json_atomic(checkpoint.with_suffix(_MANIFEST), manifest)


def read(checkpoint: Path, training_id: str) -> tuple[int, dict[str, Tensor], bytes]:
    """A committed checkpoint's step, tensors (on the CPU) and records.

    Raises CorruptCheckpointError if a file can't be read or fails its SHA-256 check, or if commit() wrote it for
    another training or into another run directory: its weights would be taken for this training's.
    """
    try:
        manifest = json.loads(checkpoint.with_suffix(_MANIFEST).read_text("utf-8"))
        step = int(manifest["step"])
        expected = dict(manifest["sha256"])
        training = {key: manifest.get(key) for key in _TRAINING_KEYS}
        tensors = load_file(checkpoint.with_suffix(_TENSORS))
        records = checkpoint.with_suffix(_RECORDS).read_bytes()
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CorruptCheckpointError(f"{checkpoint.name} can't be read: {error!r}") from None
    if training != (here := _training(checkpoint, training_id)):
        key = next(key for key in _TRAINING_KEYS if training[key] != here[key])
        raise CorruptCheckpointError(
            f"{checkpoint.name} was saved by another training: {key} {training[key]}, not {here[key]}"
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(_sha256, map(_bytes, tensors.values()))
        actual = dict(zip(tensors, digests, strict=True))
    actual[_RECORDS] = hashlib.sha256(records).hexdigest()
    if actual != expected:
        names = sorted({**expected, **actual})
        name = next(name for name in names if expected.get(name) != actual.get(name))
        raise CorruptCheckpointError(f"{checkpoint.name} failed its SHA-256 check: {name}")
    return step, tensors, records


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, its manifest first: without it, the rest does not count.

    What can't be removed from a failing or read-only disk stays; read() checks it.
    """
    with suppress(OSError):
        for suffix in (_MANIFEST, _TENSORS, _RECORDS):
            checkpoint.with_suffix(suffix).unlink(missing_ok=True)


def _header(tensors: Mapping[str, Tensor], begins: list[int], ends: list[int]) -> bytes:
    """The header of a safetensors file: its length in 8 bytes, then JSON padded to a multiple of 8 bytes."""
    entries: dict[str, Any] = {}
    for (name, tensor), begin, end in zip(tensors.items(), begins, ends, strict=False):
        dtype = _SAFETENSORS_DTYPES[tensor.dtype]
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _training(checkpoint: Path, training_id: str) -> dict[str, str]:
    """The training that a checkpoint belongs to: values of _TRAINING_KEYS."""
    return dict(zip(_TRAINING_KEYS, (training_id, checkpoint.parent.name), strict=True))


def _step(checkpoint: Path) -> int:
    try:
        return int(json.loads(checkpoint.with_suffix(_MANIFEST).read_text("utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _sha256(array: Tensor) -> str:
    return hashlib.sha256(_memoryview(array)).hexdigest()


def _memoryview(array: Tensor) -> memoryview:
    return memoryview(array.numpy())  # type: ignore[arg-type]  # numpy's stubs are for 3.12's Buffer


def _write_and_hash(file: int, array: Tensor, offset: int) -> str:
    remaining = _memoryview(array)
    while remaining:
        num_written = os.pwrite(file, remaining, offset)
        remaining = remaining[num_written:]
        offset += num_written
    return _sha256(array)
