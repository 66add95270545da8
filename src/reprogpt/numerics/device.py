"""Device, precision and matmul backend: the arithmetic of every number."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from reprogpt.errors import DeviceError, OutOfMemoryError
from reprogpt.messages import print_message
from reprogpt.numerics.env_vars import cpu_info
from reprogpt.numerics.portable import make_portable

# Largest error of an fp32 matrix product against float64, relative to its largest entry. True fp32 stays below 1e-6
# on the test matrices; products that round to bf16 internally show 1e-3 and more.
FP32_TOLERANCE = 1e-5
CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"

_OUT_OF_MEMORY = re.compile("(?i)out of memory|can't allocate memory|not enough memory")
_MEMORY_ADVICE = (
    "To need less memory, in this order: precision: bf16 on a GPU, a larger accumulate (micro-batches of one batch),\n"
    "activation_checkpointing: true, a smaller batch_size or context_length"
)


@dataclass(frozen=True)
class Numerics:
    """The arithmetic in use.

    matmul: the backend of fp32 matrix products. On a CPU: torch, onednn or openblas (portable). On a GPU: torch, or
    tf32, which rounds the factors to 10 bits of mantissa.
    """

    device: torch.device
    precision: str
    matmul: str

    def autocast(self) -> AbstractContextManager[object]:
        """Context for forward passes: bf16 autocast if precision is bf16, else a null context."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


@contextmanager
def temporary_numerics(*, device: str, precision: str, matmul: str) -> Iterator[Numerics]:
    """set_up_numerics while the block runs; afterwards torch's global settings are as before.

    For code that runs in a process of somebody else's, such as a served model.
    """
    environment = os.environ.get(CUBLAS_VARIABLE)
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    is_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fills_memory = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    cpu_precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    cuda_precision = torch.backends.cuda.matmul.fp32_precision
    try:
        yield set_up_numerics(device=device, precision=precision, matmul=matmul)
    finally:
        torch.use_deterministic_algorithms(is_deterministic, warn_only=is_warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fills_memory  # type: ignore[attr-defined]
        torch.backends.mkldnn.matmul.fp32_precision = cpu_precision  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = cuda_precision
        if environment is None:
            os.environ.pop(CUBLAS_VARIABLE, None)


def announce_device(numerics: Numerics) -> None:
    """Print the device, its name and its memory on standard error; warn of an NVIDIA GPU that torch can't use."""
    print_message(f"device: {describe_device(numerics.device)}")
    if numerics.device.type == "cpu" and not torch.cuda.is_available() and _has_nvidia_gpu():
        built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
        print_message(
            f"WARNING: this machine has an NVIDIA GPU that is not used: torch {torch.__version__} {built}.\n"
            "Install a build of torch that fits the driver (`nvidia-smi` shows it), or set device: cpu"
        )


def describe_device(device: torch.device) -> str:
    """The device's type and name, with its memory or number of threads."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return f"cuda, {torch.cuda.get_device_name(device)}, {memory / 2**30:.0f} GiB"
    if device.type == "mps":
        return f"mps, {platform.processor()}, {torch.mps.recommended_max_memory() / 2**30:.0f} GiB"
    return f"cpu, {cpu_info('model name') or platform.machine()}, {torch.get_num_threads()} threads"


def _has_nvidia_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


@contextmanager
def out_of_memory_advice() -> Iterator[None]:
    """Turn torch's out-of-memory errors into an OutOfMemoryError with a message for a person."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's and mps's have no class of their own
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and not _OUT_OF_MEMORY.search(text):
            raise
        raise OutOfMemoryError(f"out of memory: {_requested(text)}; {_memory_in_use()}.\n{_MEMORY_ADVICE}") from None


def _requested(text: str) -> str:
    """What an out-of-memory error says of the size that did not fit."""
    found = re.search(r"(?i)allocate ([\d.]+) ?(\w+)", text)
    if found is None:
        return "more was asked for than there is"
    size, unit = found.groups()
    if unit == "bytes":
        size, unit = f"{float(size) / 2**30:.1f}", "GiB"
    return f"{size} {unit} more were asked for"


def _memory_in_use() -> str:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        used = torch.cuda.memory_allocated()
        return (
            f"{torch.cuda.get_device_name()} has {total / 2**30:.1f} GiB, of which {free / 2**30:.1f} GiB are free and "
            f"{used / 2**30:.1f} GiB hold this training's tensors"
        )
    memory = psutil.virtual_memory()
    return f"this machine has {memory.total / 2**30:.1f} GiB, of which {memory.available / 2**30:.1f} GiB are free"


def set_up_numerics(*, device: str, precision: str, matmul: str, numerics: str = "native") -> Numerics:
    """Configure torch's arithmetic for this process; returns what was chosen.

    device: auto (cuda, else mps, else cpu), cpu, cuda or mps.
    precision: fp32, tf32 (an NVIDIA GPU's reduced fp32 products) or bf16 (autocast).
    matmul: auto, torch or onednn, for fp32 products on a CPU. auto is onednn on an AMD CPU with AVX-512, where
    torch's own library (MKL) runs AVX2 kernels, and torch elsewhere: a rule on the processor, never a timing, so it
    can't change from run to run.
    numerics: native, or portable (see portable.py), which needs device cpu or auto (then cpu), precision fp32 and
    matmul auto.
    From here on, operations without a deterministic implementation raise RuntimeError.
    Raises DeviceError for a device that is not available, for tf32 without an NVIDIA GPU, for onednn where it is
    missing or inexact, and for portable where it is not supported.
    """
    if numerics == "portable":
        return _portable(device, precision, matmul)
    chosen = _choose_device(device)
    _use_deterministic_algorithms()
    return Numerics(chosen, precision, _choose_matmul(matmul, chosen, precision))


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
    if name == "mps" and _torch_version() < (2, 13):
        # There the fused AdamW ignores grad_scale: gradients would not be clipped, and be recorded as if they were.
        raise DeviceError(f"device: mps needs torch 2.13 or newer (found: {torch.__version__}); set device to cpu")
    return torch.device(name)


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _use_deterministic_algorithms() -> None:
    os.environ.setdefault(CUBLAS_VARIABLE, ":4096:8")  # cuBLAS is deterministic only with this
    torch.use_deterministic_algorithms(True)
    # Filling new tensors with NaN costs time, and nothing here reads uninitialized memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _choose_matmul(name: str, device: torch.device, precision: str) -> str:
    if precision == "tf32" and device.type != "cuda":
        raise DeviceError(f"precision: tf32 is for an NVIDIA GPU; on device {device.type} use fp32 or bf16")
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    if device.type != "cpu":
        if name == "onednn":
            raise DeviceError(f"matmul: onednn is for the CPU; on device {device.type} use auto or torch")
        return "tf32" if precision == "tf32" else "torch"
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
    print_message(f"matmul: torch, since {fault}")
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
