"""Device, precision and matmul backend: the arithmetic of every number."""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from reprogpt.errors import DeviceError
from reprogpt.numerics.env_vars import cpu_info
from reprogpt.numerics.portable import make_portable

# Largest error of an fp32 matrix product against float64, relative to its largest entry. True fp32 stays below 1e-6
# on the test matrices; products that round to bf16 internally show 1e-3 and more.
FP32_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Numerics:
    """The arithmetic in use.

    matmul: the backend of fp32 matrix products on a CPU: torch, onednn or openblas (portable); torch elsewhere.
    """

    device: torch.device
    precision: str
    matmul: str

    def autocast(self) -> AbstractContextManager[object]:
        """Context for forward passes: bf16 autocast if precision is bf16, else a null context."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def set_up_numerics(*, device: str, precision: str, matmul: str, numerics: str = "native") -> Numerics:
    """Configure torch's arithmetic for this process; returns what was chosen.

    device: auto (cuda, else mps, else cpu), cpu, cuda or mps. precision: fp32 or bf16 (autocast).
    matmul: auto, torch or onednn, for fp32 products on a CPU. auto is onednn on an AMD CPU with AVX-512, where
    torch's own library (MKL) runs AVX2 kernels, and torch elsewhere: a rule on the processor, never a timing, so it
    can't change from run to run.
    numerics: native, or portable (see portable.py), which needs device cpu or auto (then cpu), precision fp32 and
    matmul auto.
    From here on, operations without a deterministic implementation raise RuntimeError.
    Raises DeviceError for a device that is not available, for onednn where it is missing or inexact, and for
    portable where it is not supported.
    """
    if numerics == "portable":
        return _portable(device, precision, matmul)
    chosen = _choose_device(device)
    _use_deterministic_algorithms()
    return Numerics(chosen, precision, _choose_matmul(matmul, chosen))


def _portable(device: str, precision: str, matmul: str) -> Numerics:
    if device not in ("auto", "cpu") or precision != "fp32" or matmul != "auto":
        raise DeviceError(
            "numerics: portable needs device: cpu or auto, precision: fp32 and matmul: auto "
            f"(now {device}, {precision} and {matmul}); change them, or use numerics: native"
        )
    _use_deterministic_algorithms()
    make_portable()
    return Numerics(torch.device("cpu"), "fp32", "openblas")


def _choose_device(name: str) -> torch.device:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_available in available.items() if is_available)
    if not available[name]:
        found = ", ".join(kind for kind, is_available in available.items() if is_available)
        raise DeviceError(
            f"device: {name} is not available on this machine (found: {found}); set device to one of those, or auto"
        )
    return torch.device(name)


def _use_deterministic_algorithms() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    torch.use_deterministic_algorithms(True)
    # Filling new tensors with NaN costs time, and nothing here reads uninitialized memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _choose_matmul(name: str, device: torch.device) -> str:
    if device.type != "cpu":
        if name == "onednn":
            raise DeviceError(f"matmul: onednn is for the CPU; on device {device.type} use auto or torch")
        return "torch"
    if name == "torch" or (name == "auto" and not _mkl_is_slow()):
        _set_onednn_matmul("none")
        return "torch"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise DeviceError("matmul: onednn is not built into this torch; use auto or torch")
    _set_onednn_matmul("bf16")
    error = matmul_error()
    if error <= FP32_TOLERANCE:
        return "onednn"
    _set_onednn_matmul("none")
    fault = f"oneDNN's matrix products have an error of {error:.1e} here (allowed: {FP32_TOLERANCE:.0e})"
    if name == "onednn":
        raise DeviceError(f"matmul: onednn is refused, since {fault}; use auto or torch")
    print(f"matmul: torch, since {fault}", file=sys.stderr)
    return "torch"


def _set_onednn_matmul(setting: str) -> None:
    # On a CPU without AMX, "bf16" only routes fp32 products to oneDNN, which computes them in fp32; with AMX it
    # really rounds to bf16. Hence the check with matmul_error().
    torch.backends.mkldnn.matmul.fp32_precision = setting  # type: ignore[attr-defined]


def matmul_error() -> float:
    """Largest error of an fp32 matrix product as torch now computes it, relative to its largest entry."""
    left = torch.linspace(-1, 1, 256 * 768, dtype=torch.float64).view(256, 768).sin()
    right = torch.linspace(-3, 2, 768 * 512, dtype=torch.float64).view(768, 512).cos()
    exact = left.float().double() @ right.float().double()
    return float((torch.mm(left.float(), right.float()).double() - exact).abs().max() / exact.abs().max())


def _mkl_is_slow() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and cpu_info("vendor_id") == "AuthenticAMD"
