"""What the bits of a training depend on besides parameters, text and code."""

import platform
import sys
from importlib.metadata import version

import numpy as np
import torch

from reprogpt.numerics import Numerics


def environment_facts(numerics: Numerics) -> dict[str, str]:
    """Versions and arithmetic that the bits depend on."""
    cuda = torch.cuda.get_device_name() if numerics.device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "tiktoken": version("tiktoken"),
        "device": cuda or numerics.device.type,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "matmul": numerics.matmul,
        "command": f"python {' '.join(sys.orig_argv[1:])}",
    }
