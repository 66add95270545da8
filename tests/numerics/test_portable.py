"""`numerics: portable`: the same bits with any number of threads, instruction set and processor vendor.

Processor features are disabled by environment variables, each set in a process of its own, since the variables are
read at import. Native numerics under the same variations show that the tests can fail.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from reprogpt.errors import DeviceError
from reprogpt.numerics import portable
from reprogpt.numerics.device import set_up_numerics
from reprogpt.numerics.env_vars import PORTABLE_ENV_VARS, supports_portable

ROOT = Path(__file__).resolve().parents[2]
NO_AVX512 = {
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD,-ERMS",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
VARIATIONS: dict[str, dict[str, str]] = {
    "1 thread": {"NUM_THREADS": "1"},
    "2 threads": {"NUM_THREADS": "2"},
    "4 threads": {"NUM_THREADS": "4"},
    "no AVX-512": NO_AVX512 | {"NUM_THREADS": "2"},
    "Intel": {"NUM_THREADS": "2", "PRETEND_INTEL": "1"},
    "variables set in the shell": {
        "NUM_THREADS": "3",
        "ATEN_CPU_CAPABILITY": "default",
        "OPENBLAS_CORETYPE": "Nehalem",
        "OPENBLAS_NUM_THREADS": "2",
        "MKL_CBWR": "COMPATIBLE",
    },
}
MORE: dict[str, dict[str, str]] = {
    **{f"without {name}": {name: value, "NUM_THREADS": "2"} for name, value in NO_AVX512.items()},
    "7 threads": {"NUM_THREADS": "7"},
    "MKL AVX-512": {"NUM_THREADS": "2", "PRETEND_INTEL": "1", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "oneDNN AVX-512": {"NUM_THREADS": "2", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}

linux_avx2 = pytest.mark.skipif(not supports_portable(), reason="needs Linux on an x86-64 processor with AVX2")


@cache
def digests(numerics: str, shape: str, variation: str, folder: Path) -> dict[str, str]:
    """What tests/short_training.py prints in a process with the variation's variables."""
    (folder / "params.yaml").write_text(f"numerics: {numerics}\n", encoding="utf-8")
    kept = {"PATH", "HOME", "LANG", "TMPDIR", "REPROGPT_CACHE"}
    env = {name: value for name, value in os.environ.items() if name in kept}
    env |= {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"} | (VARIATIONS | MORE)[variation]
    command = [sys.executable, "-m", "tests.short_training", shape]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=500)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("portable")


@linux_avx2
@pytest.mark.parametrize("variation", list(VARIATIONS)[1:])
def test_portable_bits_are_equal(variation: str, folder: Path) -> None:
    assert digests("portable", "small", variation, folder) == digests("portable", "small", "1 thread", folder)


@linux_avx2
@pytest.mark.slow
@pytest.mark.parametrize("variation", [*list(VARIATIONS)[1:], *MORE])
def test_portable_bits_are_equal_at_the_width_of_gpt_124m(variation: str, folder: Path) -> None:
    assert digests("portable", "wide", variation, folder) == digests("portable", "wide", "1 thread", folder)


@linux_avx2
@pytest.mark.slow
@pytest.mark.parametrize("variation", ["2 threads", "no AVX-512"])
def test_native_bits_differ_under_these_variations(variation: str, folder: Path) -> None:
    usual = digests("native", "small", "1 thread", folder)
    assert digests("native", "small", variation, folder)["weights"] != usual["weights"]


@pytest.mark.parametrize(
    "change", [{"device": "cuda"}, {"precision": "bf16"}, {"matmul": "onednn"}, {"matmul": "torch"}]
)
def test_arithmetic_that_is_not_portable_is_refused(change: dict[str, str]) -> None:
    choice = {"device": "auto", "precision": "fp32", "matmul": "auto", "numerics": "portable"}
    with pytest.raises(DeviceError, match=r"numerics: portable needs .*or use numerics: native"):
        set_up_numerics(**choice | change)


def test_an_unsupported_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "supports_portable", lambda: False)
    with pytest.raises(DeviceError, match=r"needs Linux on an x86-64 processor with AVX2.* use numerics: native"):
        set_up_numerics(device="cpu", precision="fp32", matmul="auto", numerics="portable")


def test_variables_set_after_import_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has imported numpy and torch already; setting the variables now changes nothing."""
    monkeypatch.setattr(portable, "supports_portable", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for name, value in PORTABLE_ENV_VARS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=r"before numpy and torch are loaded \(torch uses AVX512"):
        set_up_numerics(device="cpu", precision="fp32", matmul="auto", numerics="portable")
