"""`numerics: portable`: the same bits on every x86-64 processor with AVX2, whatever its number of cores.

Products are defined (portable_matmul.py), and the operations that torch divides among its threads are divided by
their shapes (portable_kernels.py). torch's other operations are its own, by the kernels for AVX2.
"""

import os

import torch

from reprogpt.errors import DeviceError
from reprogpt.numerics.env_vars import cpu_info, portable_env_vars
from reprogpt.numerics.portable_kernels import install_kernels
from reprogpt.numerics.portable_matmul import choose_library
from reprogpt.numerics.thread_pool import start_threads


def are_env_vars_in_effect() -> bool:
    """Whether the variables are set, and torch was loaded after that."""
    is_set = all(os.environ.get(name) == value for name, value in portable_env_vars().items())
    return is_set and torch.backends.cpu.get_cpu_capability() == "AVX2"


def make_portable() -> None:
    """Make this process's arithmetic independent of the processor and of torch's present number of threads.

    It can't be undone. Raises DeviceError if torch was loaded before set_env_vars ran, or is too old, and if no library
    of torch's computes products by the definition.
    """
    if not are_env_vars_in_effect():
        settings = " ".join(f"{name}={value}" for name, value in portable_env_vars().items())
        raise DeviceError(
            f"numerics: portable needs {settings} in the environment before torch is loaded (torch uses "
            f"{torch.backends.cpu.get_cpu_capability()}); run it through the stages, or set them first"
        )
    if not hasattr(torch.library, "get_kernel"):
        raise DeviceError(
            f"numerics: portable needs the torch of requirements.lock (found: {torch.__version__}); "
            "use numerics: native"
        )
    # Flash attention multiplies within its kernel; the plain path uses products that are replaced.
    torch.backends.cuda.enable_flash_sdp(False)
    num_threads = torch.get_num_threads()
    start_threads(num_threads)
    library = choose_library(prefers_onednn=is_onednn_faster(), num_threads=num_threads)
    if library is None:
        raise DeviceError(
            "numerics: portable is refused: the matrix products of MKL, torch's library, are not what is defined "
            f"(processor: {cpu_info('model name')}, torch {torch.__version__}); use numerics: native"
        )
    install_kernels(library)


def is_onednn_faster() -> bool:
    """Whether this is an AMD processor with AVX-512, where MKL's products use AVX2 and oneDNN's AVX-512."""
    return cpu_info("vendor_id") == "AuthenticAMD" and torch.cpu._is_avx512_supported()
