"""Where `numerics: portable` is possible, and the environment variables that it needs.

torch and MKL read the variables once, as they are loaded. Nothing here imports torch, or a file of ours that does.
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

# The values of other keys of params.yaml that go with it.
PORTABLE_VALUES: dict[str, tuple[object, ...]] = {
    "device": ("auto", "cpu"),
    "precision": ("fp32",),
    "matmul": ("auto",),
    "nproc_per_node": (1,),
}
_AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


def set_env_vars(params: Mapping[str, object]) -> None:
    """Set the variables of portable numerics for this process, if it computes in them.

    params: the values of params.yaml, not validated yet: a stage reports those that are refused.
    Does nothing if torch is loaded already: then the variables have no effect.
    """
    wanted = params.get("numerics")
    is_portable = wanted in ("portable", "auto") and obstacle_to_portable(params) is None
    if is_portable and "torch" not in sys.modules:
        os.environ.update(portable_env_vars())
        # For speed: after each operation, torch's threads would go on spinning for the next one, on the cores that the
        # threads of thread_pool.py need. Measured on two busy cores, a step took twice the processor time.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def portable_env_vars() -> dict[str, str]:
    """The variables and their values on this processor."""
    return {
        # torch's kernels for elementwise operations, softmax and norms: those for AVX-512 round differently.
        "ATEN_CPU_CAPABILITY": "avx2",
        # MKL's products on Intel's processors: the same order of additions for each shape and alignment.
        "MKL_CBWR": "AVX512,STRICT" if _cpu_flags() >= _AVX512 else "AVX2,STRICT",
    }


def obstacle_to_portable(params: Mapping[str, object]) -> str | None:
    """Why these parameters can't be computed in portable numerics on this machine; None if they can."""
    for key, allowed in PORTABLE_VALUES.items():
        if key in params and params[key] not in allowed:
            return f"{key} is {params[key]}"
    if not supports_portable():
        return f"this is {platform.system()} on {platform.machine()}, not Linux on x86-64 with AVX2 and FMA"
    return None


def supports_portable() -> bool:
    """Whether this is Linux on an x86-64 processor with AVX2 and FMA."""
    return platform.system() == "Linux" and platform.machine() == "x86_64" and _cpu_flags() >= {"avx2", "fma"}


def _cpu_flags() -> set[str]:
    return set(cpu_info("flags").split())


def cpu_info(key: str) -> str:
    """A value of the first processor in /proc/cpuinfo, such as flags or vendor_id; "" if it can't be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
