"""`numerics: portable`: the same bits on every x86-64 processor with AVX2, however many its cores.

Whatever chooses its kernels by processor is switched to one choice or not used; whatever divides a
sum among threads runs on one.
"""

import os
import platform

import threadpoolctl
import torch

from reprogpt.environment import SWITCHES, can_be_portable
from reprogpt.errors import DeviceError
from reprogpt.products import route_products_to_numpy


def make_portable() -> None:
    """Set this process, for good, to arithmetic that doesn't depend on the processor.

    Raises DeviceError where the processor can't, or where numpy or torch was loaded before
    set_environment, so that its switches came too late.
    """
    _require_processor()
    _require_switches()
    # The flash kernel multiplies through MKL from within; the plain path uses products that are routed.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]
    # LayerNorm's backward pass has a partial sum per thread, and GELU's last entries of each thread's
    # share are rounded otherwise than the rest.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    route_products_to_numpy(num_threads)


def _require_processor() -> None:
    if not can_be_portable():
        found = f"{platform.system()} on {platform.machine() or 'an unknown processor'}"
        raise DeviceError(
            "numerics: portable needs Linux on an x86-64 processor with AVX2 and FMA "
            f"(found: {found}, without one of them); use numerics: native"
        )


def _require_switches() -> None:
    """Look at what numpy and torch really use: a variable set too late changes nothing."""
    capability = torch.backends.cpu.get_cpu_capability()
    libraries = [library for library in threadpoolctl.threadpool_info() if library["internal_api"] == "openblas"]
    if not libraries:
        raise DeviceError("numerics: portable needs a numpy built with OpenBLAS, as on PyPI; use numerics: native")
    kernels = {(library["architecture"], library["num_threads"]) for library in libraries}
    if capability != "AVX2" or kernels != {(SWITCHES["OPENBLAS_CORETYPE"], 1)}:
        settings = " ".join(f"{name}={value}" for name, value in SWITCHES.items())
        raise DeviceError(
            f"numerics: portable needs {settings} in the environment before numpy and torch are loaded "
            f"(torch uses {capability}, OpenBLAS {sorted(kernels)}, variables now: "
            f"{ {name: os.environ.get(name, '') for name in SWITCHES} }); run it through the stages, or set them first"
        )
