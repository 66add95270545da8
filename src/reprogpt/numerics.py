"""Device, precision and matrix products: the arithmetic that every number comes from."""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from reprogpt.errors import DeviceError
from reprogpt.portable import make_portable

# Largest error of an fp32 product, relative to its largest entry, against float64. True fp32 stays
# below 1e-6 on the test matrices; products rounded to bf16 on the way show 1e-3 and more.
FP32_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Numerics:
    """The arithmetic in use. matmul, fp32 products on a CPU: torch, onednn or openblas (portable); elsewhere torch."""

    device: torch.device
    precision: str
    matmul: str

    def autocast(self) -> AbstractContextManager[object]:
        """Context for forward passes: bf16 products where precision says so, else nothing."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def set_up_numerics(*, device: str, precision: str, matmul: str, numerics: str = "native") -> Numerics:
    """Set torch's arithmetic for this process and say what was chosen.

    device: auto (cuda, else mps, else cpu), cpu, cuda or mps. precision: fp32 or bf16 (autocast).
    matmul: auto, torch or onednn, for fp32 products on a CPU; auto is onednn on an AMD CPU with
    AVX-512, where torch's own library runs its AVX2 kernels, and torch elsewhere: a rule on the
    processor, never a timing, so that it can't change from run to run.
    numerics: native, or portable (see portable.py), which needs device cpu or auto (then cpu), precision
    fp32 and matmul auto.
    Operations without a deterministic form raise RuntimeError from here on.
    Raises DeviceError for a device that is not there, onednn where it is absent or inexact, or portable
    where it can't be kept.
    """
    if numerics == "portable":
        return _portable(device, precision, matmul)
    chosen = _choose_device(device)
    _be_deterministic()
    return Numerics(chosen, precision, _choose_matmul(matmul, chosen))


def _portable(device: str, precision: str, matmul: str) -> Numerics:
    if device not in ("auto", "cpu") or precision != "fp32" or matmul != "auto":
        raise DeviceError(
            "numerics: portable needs device: cpu or auto, precision: fp32 and matmul: auto "
            f"(now {device}, {precision} and {matmul}); change them, or use numerics: native"
        )
    _be_deterministic()
    make_portable()
    return Numerics(torch.device("cpu"), "fp32", "openblas")


def _choose_device(name: str) -> torch.device:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if not present[name]:
        found = ", ".join(kind for kind, there in present.items() if there)
        raise DeviceError(f"device: {name} is not available here (found: {found}); set device to one of those, or auto")
    return torch.device(name)


def _be_deterministic() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory with NaN finds bugs but costs time, and nothing here reads unwritten memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _choose_matmul(name: str, device: torch.device) -> str:
    if device.type != "cpu":
        if name == "onednn":
            raise DeviceError(f"matmul: onednn is for the CPU; on device {device.type} use auto or torch")
        return "torch"
    wanted = name if name != "auto" else ("onednn" if _torch_products_are_slow() else "torch")
    if wanted == "torch":
        _route_products("none")
        return "torch"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise DeviceError("matmul: onednn is not built into this torch; use auto or torch")
    _route_products("bf16")
    error = product_error()
    if error <= FP32_TOLERANCE:
        return "onednn"
    _route_products("none")
    fault = f"oneDNN's products are off by {error:.1e} here (allowed: {FP32_TOLERANCE:.0e})"
    if name == "onednn":
        raise DeviceError(f"matmul: onednn is refused, since {fault}; use auto or torch")
    print(f"matmul: torch, since {fault}", file=sys.stderr)
    return "torch"


def _route_products(setting: str) -> None:
    # On a CPU without bf16 tile units, "bf16" only routes fp32 products to oneDNN, which computes
    # them in fp32; on one that has them it really rounds. Hence product_error() after it.
    torch.backends.mkldnn.matmul.fp32_precision = setting  # type: ignore[attr-defined]


def product_error() -> float:
    """Largest error of one fp32 matrix product as torch now computes it, relative to its largest entry."""
    left = torch.linspace(-1, 1, 256 * 768, dtype=torch.float64).view(256, 768).sin()
    right = torch.linspace(-3, 2, 768 * 512, dtype=torch.float64).view(768, 512).cos()
    exact = left.float().double() @ right.float().double()
    return float((torch.mm(left.float(), right.float()).double() - exact).abs().max() / exact.abs().max())


def _torch_products_are_slow() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and cpu_vendor() == "AuthenticAMD"


def cpu_vendor() -> str:
    """The processor's vendor as Linux names it, "" where that can't be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")
