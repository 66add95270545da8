"""What numpy and torch read once, as they are loaded: their switches for `numerics: portable`.

Hence nothing here imports them, nor a file of ours that does.
"""

import os
import platform
import re
from pathlib import Path

SWITCHES = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "OPENBLAS_CORETYPE": "Haswell",  # numpy's products: Intel's first processor with AVX2 stands for all
    "OPENBLAS_NUM_THREADS": "1",  # products.py divides the work itself
}
_NUMERICS = re.compile(r"""^["']?numerics["']?\s*:\s*["']?portable["']?\s*(#.*)?$""", re.MULTILINE)


def set_environment(params_file: Path) -> None:
    """Set SWITCHES for this process if params_file says `numerics: portable` and the processor can follow.

    Call before numpy or torch is imported. A missing or broken file, and a processor that can't, are
    left to the stage, which reports them.
    """
    try:
        text = params_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if _NUMERICS.search(text) and can_be_portable():
        os.environ.update(SWITCHES)


def can_be_portable() -> bool:
    """Whether this is Linux on an x86-64 processor with AVX2 and FMA; the kernels are not safe elsewhere."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return {"avx2", "fma"} <= set(flags)
