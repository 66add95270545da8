"""Leaves a part of portable numerics out of this process, to see a test fail without it.

The variable DROP names it: an environment variable, an operation whose kernel is replaced, or flash_sdp. To be imported
before `stages`, which sets the environment.
"""

import os
from typing import Any

from reprogpt.numerics import env_vars

NAME = os.environ.get("DROP", "")
_ENV_VARS = {name: value for name, value in env_vars.portable_env_vars().items() if name != NAME}
env_vars.portable_env_vars = lambda: _ENV_VARS


def leave_out_of_torch() -> None:
    """Call before make_portable."""
    import torch

    if NAME == "flash_sdp":
        torch.backends.cuda.enable_flash_sdp = lambda enabled: None
    original = torch.library.Library.impl

    def impl(self: torch.library.Library, op_name: Any, *arguments: Any, **options: Any) -> None:
        if op_name != NAME:
            original(self, op_name, *arguments, **options)

    torch.library.Library.impl = impl  # type: ignore[method-assign]
