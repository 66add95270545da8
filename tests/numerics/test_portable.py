"""`numerics: portable`: the digests of a short training, on this machine and as on others.

Features of other processors are set by variables, each in a process of its own, since libraries read them once.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from reprogpt.errors import DeviceError
from reprogpt.numerics import portable
from reprogpt.numerics.device import set_up_numerics
from reprogpt.numerics.env_vars import portable_env_vars, supports_portable

ROOT = Path(__file__).resolve().parents[2]
# Of any machine: made by `python -m tests.short_training SHAPE` in a folder whose params.yaml is `numerics: portable`
# (torch 2.13.0). A machine whose digests differ has found a processor, or a number of threads, that portable numerics
# do not cover: please report it. Another torch may change them.
GOLDEN = {
    "small": {
        "untrained": "b22a563f5603",
        "weights": "7b2b02950997",
        "records": "0f1609230d34",
        "log": "7827f2f61f5f",
        "evaluation": "166cf953b8eb",
        "sample": "0a9ebd461efa",
    },
    "small book": {
        "untrained": "3afb1a087c71",
        "weights": "1d3ab67ecb9e",
        "records": "3bc2df81502b",
        "log": "7827f2f61f5f",
        "evaluation": "c421f0c23b55",
        "sample": "e08841b5cbf2",
    },
}
NO_AVX512 = {
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD,-ERMS",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "LIBRARY": "MKL",
}
VARIATIONS: dict[str, dict[str, str]] = {
    "2 threads": {"NUM_THREADS": "2"},
    "16 threads, MKL": {"NUM_THREADS": "16", "LIBRARY": "MKL"},
    "3 threads, MKL as on Intel": {"NUM_THREADS": "3", "PRETEND_INTEL": "1"},
}
MORE: dict[str, dict[str, str]] = {
    "1 thread": {"NUM_THREADS": "1"},
    **{f"{number} threads": {"NUM_THREADS": str(number)} for number in (3, 4, 7, 16)},
    **{f"{number} threads, MKL": {"NUM_THREADS": str(number), "LIBRARY": "MKL"} for number in (1, 2, 3, 4, 7)},
    **{
        f"{number} threads, MKL as on Intel": {"NUM_THREADS": str(number), "PRETEND_INTEL": "1"}
        for number in (1, 7, 16)
    },
    "no AVX-512": NO_AVX512 | {"NUM_THREADS": "2"},
    "no AVX-512 in glibc": {"NUM_THREADS": "2", "GLIBC_TUNABLES": NO_AVX512["GLIBC_TUNABLES"]},
    "variables set in the shell": {
        "NUM_THREADS": "3",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "MKL_DYNAMIC": "TRUE",
    },
}
# Parts of portable numerics, with the machine on which the digests are others without it.
ON_16_THREADS = VARIATIONS["16 threads, MKL"]
AS_ON_INTEL = VARIATIONS["3 threads, MKL as on Intel"]
PARTS: dict[str, dict[str, str]] = {
    "mm": ON_16_THREADS,
    "bmm": ON_16_THREADS,
    "addmm": ON_16_THREADS,
    "gelu": ON_16_THREADS,
    "gelu_backward": ON_16_THREADS,
    "native_layer_norm_backward": ON_16_THREADS,
    "_softmax_backward_data": ON_16_THREADS,
    "sum.dim_IntList": ON_16_THREADS,
    "flash_sdp": ON_16_THREADS,
    "log": AS_ON_INTEL,
}
EMULATED = ["Haswell", "Skylake-Client", "EPYC-Milan"]

linux_avx2 = pytest.mark.skipif(not supports_portable(), reason="needs Linux on an x86-64 processor with AVX2")
golden_torch = pytest.mark.skipif(
    not torch.__version__.startswith("2.13.0"), reason="the digests are those of torch 2.13.0"
)


def run_short_training(
    shape: str, variables: dict[str, str], folder: Path, numerics: str = "portable", prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """tests/short_training.py in a process with these variables. prefix: a program that runs the interpreter."""
    (folder / "params.yaml").write_text(f"numerics: {numerics}\n", encoding="utf-8")
    kept = {"PATH", "HOME", "LANG", "TMPDIR", "REPROGPT_CACHE"}
    env = {name: value for name, value in os.environ.items() if name in kept}
    env |= {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"} | variables
    command = [*prefix, sys.executable, "-W", "ignore", "-m", "tests.short_training", shape]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def digests_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("portable")


@linux_avx2
@golden_torch
@pytest.mark.parametrize("variation", VARIATIONS)
def test_the_digests_are_those_of_every_machine(variation: str, folder: Path) -> None:
    assert digests_of(run_short_training("small", VARIATIONS[variation], folder)) == GOLDEN["small"]


@linux_avx2
@golden_torch
@pytest.mark.slow
@pytest.mark.parametrize("variation", MORE)
def test_the_digests_are_those_of_every_machine_in_more_variations(variation: str, folder: Path) -> None:
    assert digests_of(run_short_training("small", MORE[variation], folder)) == GOLDEN["small"]


@linux_avx2
@golden_torch
def test_the_digests_in_the_books_order_are_those_of_every_machine(folder: Path) -> None:
    found = digests_of(run_short_training("small book", VARIATIONS["2 threads"], folder))
    assert found == GOLDEN["small book"]


@cache
def wide_digests(variation: str, folder: Path) -> dict[str, str]:
    return digests_of(run_short_training("wide", (VARIATIONS | MORE)[variation], folder))


@linux_avx2
@pytest.mark.slow
@pytest.mark.parametrize("variation", [*VARIATIONS, "no AVX-512"])
def test_digests_are_equal_at_the_width_of_gpt_124m(variation: str, folder: Path) -> None:
    assert wide_digests(variation, folder) == wide_digests("1 thread", folder)


@linux_avx2
@golden_torch
@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_without_a_part_the_digests_are_others(part: str, folder: Path) -> None:
    assert digests_of(run_short_training("small", PARTS[part] | {"DROP": part}, folder)) != GOLDEN["small"]


@linux_avx2
@pytest.mark.slow
def test_without_mkl_cbwr_the_products_as_on_intel_are_refused(folder: Path) -> None:
    variables = AS_ON_INTEL | {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "DROP": "MKL_CBWR"}
    done = run_short_training("small", variables, folder)
    assert "the matrix products of MKL, torch's library, are not what is defined" in done.stderr


@linux_avx2
@pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="without AVX-512, torch uses AVX2 in any case")
@pytest.mark.slow
def test_without_aten_cpu_capability_it_is_refused(folder: Path) -> None:
    done = run_short_training("small", {"DROP": "ATEN_CPU_CAPABILITY"}, folder)
    assert "before torch is loaded (torch uses AVX512)" in done.stderr


@linux_avx2
@golden_torch
@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="qemu-x86_64 is not installed (package qemu-user)")
@pytest.mark.parametrize("processor", EMULATED)
def test_an_emulated_processor_gives_the_digests(processor: str, folder: Path) -> None:
    """Without AVX-512; the first two are of Intel's make also to torch and cpuinfo, not only to MKL."""
    emulator = ("qemu-x86_64", "-cpu", processor)
    done = run_short_training("small book", {"NUM_THREADS": "1"}, folder, prefix=emulator)
    assert digests_of(done) == GOLDEN["small book"]


@linux_avx2
@pytest.mark.slow
def test_native_digests_differ_by_the_number_of_threads(folder: Path) -> None:
    one, seven = (
        digests_of(run_short_training("small", {"NUM_THREADS": number}, folder, numerics="native"))
        for number in ("1", "7")
    )
    assert one["untrained"] == seven["untrained"]
    assert one["weights"] != seven["weights"]


@pytest.mark.parametrize(
    ("key", "value"), [("device", "cuda"), ("precision", "bf16"), ("matmul", "torch"), ("nproc_per_node", 2)]
)
def test_arithmetic_that_is_not_portable_is_refused(key: str, value: str | int) -> None:
    arithmetic = {"device": "auto", "precision": "fp32", "matmul": "auto", "numerics": "portable"} | {key: value}
    message = f"portable is not possible, since {key} is {value}; change it, or use numerics: native"
    with pytest.raises(DeviceError, match=message):
        set_up_numerics(**arithmetic)  # type: ignore[arg-type]


def test_variables_set_after_torch_is_loaded_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for name, value in portable_env_vars().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=r"ATEN_CPU_CAPABILITY=avx2 .*before torch is loaded \(torch uses AVX512\)"):
        portable.make_portable()


def test_a_processor_whose_products_are_not_the_defined_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "are_env_vars_in_effect", lambda: True)
    monkeypatch.setattr(portable, "start_threads", lambda num_threads: None)
    monkeypatch.setattr(torch.backends.cuda, "enable_flash_sdp", lambda enabled: None)
    monkeypatch.setattr(portable, "choose_library", lambda **options: None)
    with pytest.raises(DeviceError, match=r"products of MKL, torch's library, are not .*use numerics: native"):
        portable.make_portable()
