"""Loads the library that is the program's first argument, compiled from fake_cuda.cpp. To be imported before torch."""

import ctypes
import importlib.util
import sys
from pathlib import Path

spec = importlib.util.find_spec("torch")
assert spec is not None and spec.origin is not None
for library in ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so"):
    ctypes.CDLL(str(Path(spec.origin).parent / "lib" / library), mode=ctypes.RTLD_GLOBAL)
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
