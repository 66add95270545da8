"""Environment variables that numpy and torch read once, at import: what `numerics: portable` needs.

Nothing here imports numpy, torch, or a file of ours that does.
"""

import os
import platform
from pathlib import Path

PORTABLE_ENV_VARS = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "OPENBLAS_CORETYPE": "Haswell",  # numpy's matrix products; Intel's first processor with AVX2 stands for all
    "OPENBLAS_NUM_THREADS": "1",  # portable_matmul.py divides the work itself
}


def set_env_vars(numerics: object) -> None:
    """Set PORTABLE_ENV_VARS for this process if numerics is "portable" and the processor supports it.

    Call before numpy or torch is imported. A processor that lacks support is left to the stage, which reports it.
    """
    if numerics == "portable" and supports_portable():
        os.environ.update(PORTABLE_ENV_VARS)


def supports_portable() -> bool:
    """Whether this is Linux on an x86-64 processor with AVX2 and FMA; the kernels are not safe elsewhere."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    return {"avx2", "fma"} <= set(cpu_info("flags").split())


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
