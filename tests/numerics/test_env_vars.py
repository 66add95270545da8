"""Where portable numerics are possible, their environment variables, and what is read of the processor."""

import os
import sys
from pathlib import Path

import pytest

from reprogpt.numerics import env_vars
from reprogpt.numerics.env_vars import (
    cpu_info,
    obstacle_to_portable,
    portable_env_vars,
    set_env_vars,
    supports_portable,
)

PORTABLE = {"numerics": "auto", "device": "auto", "precision": "fp32", "matmul": "auto", "nproc_per_node": 1}


@pytest.fixture
def before_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supported processor, and torch not loaded yet."""
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(env_vars, "supports_portable", lambda: True)
    for name in (*portable_env_vars(), "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "mine")


def is_set() -> bool:
    values = {os.environ[name] for name in portable_env_vars()}
    assert values == set(portable_env_vars().values()) or values == {"mine"}
    return values != {"mine"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"numerics": "portable"}, True),
        ({"numerics": "native"}, False),
        ({"numerics": ["x"]}, False),
        ({"numerics": None}, False),
        ({"device": "cpu"}, True),
        ({"device": "cuda"}, False),
        ({"precision": "bf16"}, False),
        ({"matmul": "onednn"}, False),
        ({"nproc_per_node": 2}, False),
    ],
)
def test_the_variables_are_set_where_the_parameters_are_portable(
    changes: dict[str, object], expected: bool, before_torch: None
) -> None:
    set_env_vars(PORTABLE | changes)
    assert is_set() is expected


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_without_spinning_unless_the_user_says_so(
    before: str | None, after: str, before_torch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", before or "")
    if before is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    set_env_vars(PORTABLE)
    assert os.environ["OMP_WAIT_POLICY"] == after


def test_no_variable_is_set_for_parameters_that_cannot_be_read(before_torch: None) -> None:
    set_env_vars({})
    assert not is_set()


def test_no_variable_is_set_on_an_unsupported_processor(before_torch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_vars, "supports_portable", lambda: False)
    set_env_vars(PORTABLE)
    assert not is_set()
    assert "not Linux on x86-64 with AVX2 and FMA" in str(obstacle_to_portable(PORTABLE))


def test_no_variable_is_set_once_torch_is_loaded(before_torch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    set_env_vars(PORTABLE)
    assert not is_set()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2 fma", "AVX2,STRICT"),
        ("avx2 fma avx512f", "AVX2,STRICT"),
        ("avx2 fma avx512f avx512cd avx512bw avx512dq avx512vl", "AVX512,STRICT"),
    ],
)
def test_mkl_uses_avx512_where_the_processor_has_it(flags: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_vars, "cpu_info", {"flags": flags}.__getitem__)
    assert portable_env_vars()["MKL_CBWR"] == expected


@pytest.mark.parametrize(
    ("system", "machine", "flags", "is_supported"),
    [
        ("Linux", "x86_64", "sse avx2 fma", True),
        ("Linux", "x86_64", "sse avx fma", False),
        ("Linux", "aarch64", "asimd", False),
        ("Darwin", "x86_64", "avx2 fma", False),
    ],
)
def test_portable_needs_linux_on_x86_64_with_avx2_and_fma(
    system: str, machine: str, flags: str, is_supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda *arguments, **options: f"processor\t: 0\nflags\t\t: {flags}\n")
    assert supports_portable() is is_supported


def test_cpu_info_is_empty_if_it_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*arguments: object, **options: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", unreadable)
    assert cpu_info("vendor_id") == ""


def test_cpu_info_is_the_first_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t: 1\n\nprocessor\t: 1\nvendor_id\t: Other\n"
    monkeypatch.setattr(Path, "read_text", lambda *arguments, **options: text)
    assert cpu_info("vendor_id") == "AuthenticAMD"
    assert cpu_info("stepping") == ""
