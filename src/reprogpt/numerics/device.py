"""Device, precision and matmul backend: the arithmetic of every number."""

import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from reprogpt.errors import DeviceError, OutOfMemoryError
from reprogpt.messages import print_message
from reprogpt.numerics.env_vars import cpu_info, obstacle_to_portable
from reprogpt.numerics.portable import are_env_vars_in_effect, make_portable

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

    matmul: the backend of fp32 matrix products. On a CPU: torch, onednn or portable. On a GPU: torch, or tf32, which
    rounds the factors to 10 bits of mantissa.
    choice: what `numerics: auto` chose and why, in a line; "" if nothing was to be chosen.
    """

    device: torch.device
    precision: str
    matmul: str
    choice: str = ""

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
    if numerics.choice:
        print_message(numerics.choice)
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


def set_up_numerics(
    *, device: str, precision: str, matmul: str, numerics: str = "native", nproc_per_node: int = 1
) -> Numerics:
    """Configure torch's arithmetic for this process; returns what was chosen.

    device: auto (cuda, else mps, else cpu), cpu, cuda or mps.
    precision: fp32, tf32 (an NVIDIA GPU's reduced fp32 products) or bf16 (autocast).
    matmul: auto, torch or onednn, for fp32 products on a CPU in native numerics. auto is onednn on an AMD CPU with
    AVX-512, where torch's own library (MKL) runs AVX2 kernels, and torch elsewhere: a rule on the processor, never a
    timing, so it can't change from run to run.
    numerics: native, portable (see portable.py), or auto: portable where that is possible, without a GPU for device
    auto. portable with device auto is the CPU.
    nproc_per_node: processes that share the work; with several, auto is native and portable is refused.
    From here on, operations without a deterministic implementation raise RuntimeError.
    Raises DeviceError for a device that is not available, for tf32 without an NVIDIA GPU, for bf16 on a CPU that lacks
    it, for onednn where it is missing or inexact, and for portable where it is not possible.
    """
    choice = ""
    params = {"device": device, "precision": precision, "matmul": matmul, "nproc_per_node": nproc_per_node}
    obstacle = None if numerics == "native" else obstacle_to_portable(params)
    if numerics == "auto":
        obstacle = obstacle or _obstacle_in_process(device)
        numerics = "native" if obstacle else "portable"
        why = obstacle or "this is Linux on x86-64 with AVX2 and FMA"
        choice = f"numerics: {numerics} (auto), since {why}"
    elif obstacle:
        raise DeviceError(f"numerics: portable is not possible, since {obstacle}; change it, or use numerics: native")
    _use_deterministic_algorithms()
    if numerics == "portable":
        make_portable()
        return Numerics(torch.device("cpu"), precision, "portable", choice)
    chosen = _choose_device(device)
    return Numerics(chosen, precision, _choose_matmul(matmul, chosen, precision), choice)


def chooses_portable(arithmetic: Mapping[str, Any]) -> bool:
    """Whether a stage on this machine computes in portable numerics. arithmetic: set_up_numerics' keywords."""
    if arithmetic["numerics"] == "native" or obstacle_to_portable(arithmetic):
        return False
    return arithmetic["numerics"] == "portable" or _choose_device(arithmetic["device"]).type == "cpu"


def _obstacle_in_process(device: str) -> str | None:
    """Why `numerics: auto` is native here although parameters and processor allow portable; None if it is not."""
    if device == "auto" and (found := _choose_device("auto")).type != "cpu":
        return f"device: auto found {found.type}"
    if not are_env_vars_in_effect():
        return "torch was loaded before the variables of portable numerics were set"
    return None


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
    if device.type == "cpu" and precision == "bf16":
        _require_bf16()
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


def _require_bf16() -> None:
    if platform.machine() == "x86_64" and not has_fast_bf16():
        raise DeviceError(
            "precision: bf16 takes more than 20 times as long as fp32 on this processor, which has neither bf16 nor "
            f"AVX-512 instructions ({cpu_info('model name') or platform.machine()}); use precision: fp32"
        )


def has_fast_bf16() -> bool:
    """Whether oneDNN computes products in bf16 on this CPU: without AVX-512, they run one-threaded reference code."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
