"""Resume points on disk: tensors as safetensors, and a manifest that vouches for them by digest.

Training waits only while the tensors are copied to the operating system's file cache (copy_out). Disk,
digest and manifest follow in seal, which another thread may do. A point without its manifest is none.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from reprogpt.files import file_digest, write_json_atomic

_DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}
_WRITERS = 2  # one core alone can't fill the file cache as fast as memory allows
_TENSORS, _MANIFEST = ".safetensors", ".json"


class DamagedPointError(Exception):
    """A point's bytes are not those that its manifest vouches for."""


def point_path(folder: Path, step: int) -> Path:
    """Where the point before 0-based `step` lies; its two files add a suffix each."""
    return folder / f"point-{step:09d}"


def sealed_points(folder: Path) -> list[Path]:
    """The points that have a manifest, newest first."""
    return sorted((path.with_suffix("") for path in folder.glob(f"point-*{_MANIFEST}")), reverse=True)


def copy_out(point: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors (float32, int64 or uint8) to the point's file, not yet to the disk.

    safetensors' own writer makes a copy of each tensor in memory first: nine times as slow on 2 GB.
    """
    arrays = {name: tensor.detach().cpu().contiguous().flatten().view(torch.uint8) for name, tensor in tensors.items()}
    header: dict[str, dict[str, Any]] = {}
    start = 0
    for name, array in arrays.items():
        end = start + array.numel()
        header[name] = {
            "dtype": _DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
        start = end
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    begins = [8 + len(words) + entry["data_offsets"][0] for entry in header.values()]
    with point.with_suffix(_TENSORS).open("wb", buffering=0) as file, ThreadPoolExecutor(_WRITERS) as pool:
        file.write(len(words).to_bytes(8, "little") + words)
        list(pool.map(partial(_write, file.fileno()), arrays.values(), begins))


def seal(point: Path, facts: Mapping[str, Any]) -> None:
    """Bring what copy_out wrote to the disk, then vouch for it: from here on the point exists."""
    tensors = point.with_suffix(_TENSORS)
    with tensors.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_json_atomic(point.with_suffix(_MANIFEST), {"sha256": digest, **facts})


def read_point(point: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A sealed point's tensors, on the CPU, and facts. Raises DamagedPointError if either is not as sealed."""
    tensors = point.with_suffix(_TENSORS)
    try:
        facts = json.loads(point.with_suffix(_MANIFEST).read_text("utf-8"))
        digest = file_digest(tensors)
        if digest != facts.pop("sha256"):
            raise DamagedPointError(
                f"{tensors.name} is damaged: its SHA-256 is {digest}, not the one it was saved with"
            )
        return load_file(tensors), facts
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedPointError(f"{point.name} can't be read: {error!r}") from None


def remove_all(folder: Path, but: Path | None = None) -> None:
    """Remove the points of a folder except `but`: manifests first, so that half a point is none."""
    for suffix in (_MANIFEST, _TENSORS):
        for path in folder.glob(f"point-*{suffix}"):
            if path.with_suffix("") != but:
                path.unlink(missing_ok=True)


def _write(target: int, array: Tensor, begin: int) -> None:
    left = memoryview(array.numpy())  # type: ignore[arg-type]  # numpy's stubs are for 3.12's Buffer
    while left:
        written = os.pwrite(target, left, begin)
        left, begin = left[written:], begin + written
