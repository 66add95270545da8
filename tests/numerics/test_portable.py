"""`numerics: portable`: equal bits whatever the threads, the instruction sets and the processor's maker.

What can be switched off on one machine is switched off, in processes of their own, since the
switches are read once. Native numerics in the same variations show that the tests can fail.
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
from reprogpt.numerics import env_vars, portable
from reprogpt.numerics.device import set_up_numerics
from reprogpt.numerics.env_vars import PORTABLE_ENV_VARS, set_env_vars, supports_portable

ROOT = Path(__file__).resolve().parent.parent
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
    "a shell's own settings": {
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
def test_portable_bits_are_equal_in_the_models_own_width(variation: str, folder: Path) -> None:
    assert digests("portable", "wide", variation, folder) == digests("portable", "wide", "1 thread", folder)


@linux_avx2
@pytest.mark.slow
@pytest.mark.parametrize("variation", ["2 threads", "no AVX-512"])
def test_native_bits_differ_so_these_variations_tell(variation: str, folder: Path) -> None:
    usual = digests("native", "small", "1 thread", folder)
    assert digests("native", "small", variation, folder)["weights"] != usual["weights"]


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("numerics: portable\n", True),
        ("seed: 1\nnumerics: 'portable' # the same bits\n", True),
        ("numerics: native\n", False),
        ("# numerics: portable\n", False),
        ("numerics: portable_\n", False),
        ("numerics: [\n", False),
    ],
)
def test_the_environment_follows_params_yaml(
    text: str, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PORTABLE_ENV_VARS:
        monkeypatch.setenv(name, "mine")
    monkeypatch.setattr(env_vars, "supports_portable", lambda: True)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    set_env_vars(tmp_path / "params.yaml")
    assert {name: os.environ[name] for name in PORTABLE_ENV_VARS} == (
        PORTABLE_ENV_VARS if asked else dict.fromkeys(PORTABLE_ENV_VARS, "mine")
    )


def test_a_missing_or_broken_file_is_left_to_the_stage(tmp_path: Path) -> None:
    before = dict(os.environ)
    set_env_vars(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"numerics: portable\n\xe9")
    set_env_vars(tmp_path / "params.yaml")
    assert dict(os.environ) == before


def test_an_older_processor_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    monkeypatch.setattr(env_vars, "supports_portable", lambda: False)
    (tmp_path / "params.yaml").write_text("numerics: portable\n", encoding="utf-8")
    set_env_vars(tmp_path / "params.yaml")
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("system", "machine", "flags", "possible"),
    [
        ("Linux", "x86_64", "sse avx2 fma", True),
        ("Linux", "x86_64", "sse avx fma", False),
        ("Linux", "aarch64", "asimd", False),
        ("Darwin", "x86_64", "avx2 fma", False),
    ],
)
def test_what_a_processor_needs(
    system: str, machine: str, flags: str, possible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda *arguments, **options: f"processor\t: 0\nflags\t\t: {flags}\n")
    assert supports_portable() is possible


@pytest.mark.parametrize(
    "change", [{"device": "cuda"}, {"precision": "bf16"}, {"matmul": "onednn"}, {"matmul": "torch"}]
)
def test_arithmetic_that_cannot_be_kept_is_refused(change: dict[str, str]) -> None:
    choice = {"device": "auto", "precision": "fp32", "matmul": "auto", "numerics": "portable"}
    with pytest.raises(DeviceError, match=r"numerics: portable needs .*or use numerics: native"):
        set_up_numerics(**choice | change)


def test_another_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "supports_portable", lambda: False)
    with pytest.raises(DeviceError, match=r"needs Linux on an x86-64 processor with AVX2.* use numerics: native"):
        set_up_numerics(device="cpu", precision="fp32", matmul="auto", numerics="portable")


def test_switches_that_came_too_late_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process loaded numpy and torch long ago; setting the variables now changes nothing."""
    monkeypatch.setattr(portable, "supports_portable", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for name, value in PORTABLE_ENV_VARS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=r"before numpy and torch are loaded \(torch uses AVX512"):
        set_up_numerics(device="cpu", precision="fp32", matmul="auto", numerics="portable")
