"""`numerics: portable`: the same bits on every x86-64 processor with AVX2, whatever its number of cores.

Libraries that choose kernels by processor are pinned to one kernel or bypassed; operations that divide a sum among
threads run on one thread.
"""

import os
import platform

import threadpoolctl
import torch

from reprogpt.errors import DeviceError
from reprogpt.numerics.env_vars import PORTABLE_ENV_VARS, supports_portable
from reprogpt.numerics.portable_matmul import route_matmul_to_numpy


def make_portable() -> None:
    """Make this process's arithmetic independent of the processor. It can't be undone.

    Raises DeviceError if the processor lacks support, or if numpy or torch was imported before set_env_vars ran.
    """
    _require_processor()
    _require_env_vars()
    # The flash attention kernel calls MKL internally; the plain path uses matrix products that are rerouted.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]
    # LayerNorm's backward pass has a partial sum per thread, and GELU rounds the last entries of each thread's range
    # differently from the rest.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    route_matmul_to_numpy(num_threads)


def _require_processor() -> None:
    if not supports_portable():
        found = f"{platform.system()} on {platform.machine() or 'an unknown processor'}"
        raise DeviceError(
            "numerics: portable needs Linux on an x86-64 processor with AVX2 and FMA "
            f"(found: {found}, without one of them); use numerics: native"
        )


def _require_env_vars() -> None:
    """Check what numpy and torch really use: a variable set too late has no effect."""
    capability = torch.backends.cpu.get_cpu_capability()
    libraries = [library for library in threadpoolctl.threadpool_info() if library["internal_api"] == "openblas"]
    if not libraries:
        raise DeviceError("numerics: portable needs a numpy built with OpenBLAS, as on PyPI; use numerics: native")
    kernels = {(library["architecture"], library["num_threads"]) for library in libraries}
    if capability != "AVX2" or kernels != {(PORTABLE_ENV_VARS["OPENBLAS_CORETYPE"], 1)}:
        settings = " ".join(f"{name}={value}" for name, value in PORTABLE_ENV_VARS.items())
        present = {name: os.environ.get(name, "") for name in PORTABLE_ENV_VARS}
        raise DeviceError(
            f"numerics: portable needs {settings} in the environment before numpy and torch are loaded "
            f"(torch uses {capability}, OpenBLAS {sorted(kernels)}, variables now: {present}); "
            "run it through the stages, or set them first"
        )
