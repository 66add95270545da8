"""Environment variables of `numerics: portable`, and what is read of the processor."""

import os
from pathlib import Path

import pytest

from reprogpt.numerics import env_vars
from reprogpt.numerics.env_vars import PORTABLE_ENV_VARS, cpu_info, set_env_vars, supports_portable


@pytest.mark.parametrize(
    ("numerics", "is_set"), [("portable", True), ("native", False), ("portable_", False), (None, False), (["x"], False)]
)
def test_the_variables_are_set_for_portable_only(
    numerics: object, is_set: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PORTABLE_ENV_VARS:
        monkeypatch.setenv(name, "mine")
    monkeypatch.setattr(env_vars, "supports_portable", lambda: True)
    set_env_vars(numerics)
    assert {name: os.environ[name] for name in PORTABLE_ENV_VARS} == (
        PORTABLE_ENV_VARS if is_set else dict.fromkeys(PORTABLE_ENV_VARS, "mine")
    )


def test_on_an_unsupported_processor_no_variable_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    monkeypatch.setattr(env_vars, "supports_portable", lambda: False)
    set_env_vars("portable")
    assert dict(os.environ) == before


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
