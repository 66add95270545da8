"""Which versions of the libraries are allowed: the pinned one, and none that breaks what works."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
BY_NAME = {requirement.name: requirement for requirement in RUNTIME}


def pins() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    found = [re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines]
    return {canonicalize_name(match[1]): Version(match[2]) for match in found if match}


@pytest.mark.parametrize("requirement", RUNTIME, ids=str)
def test_the_pinned_version_is_allowed(requirement: Requirement) -> None:
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


# A version of each that is refused, and what it breaks, or may by its own rules.
TOO_NEW = [
    ("mlflow", "3.18.0"),  # changes the tables of mlflow.db when it opens it: the pinned one then refuses the store
    ("dvc", "4.0.0"),  # may change dvc.lock, from which run keys are computed
    ("pathspec", "2.0.0"),  # may change .dvcignore's patterns, and with them the digests of folders; DVC's own bound
    ("torch", "3.0.0"),  # torch.distributed.run, fsdp2 and the backends' attributes are not promised
    ("tiktoken", "1.0.0"),  # tiktoken_ext and tiktoken.load are not promised
    ("ruamel.yaml", "0.20.0"),  # a 0.x may change with each minor version
    ("pydantic", "3.0.0"),  # strictness of the parameters' types
    ("SQLAlchemy", "3.0.0"),  # below MLflow's store
    ("numpy", "3.0.0"),  # MLflow's own bound
    ("pandas", "4.0.0"),  # MLflow's own bound
    ("safetensors", "1.0.0"),
    ("filelock", "5.0.0"),
    ("matplotlib", "4.0.0"),
    ("click", "9.0.0"),
]


@pytest.mark.parametrize(("name", "version"), TOO_NEW)
def test_a_version_that_may_break_what_works_is_not_installed(name: str, version: str) -> None:
    assert Version(version) not in BY_NAME[name].specifier


def test_the_pinned_mlflow_has_the_tables_that_its_neighbours_have() -> None:
    """mlflow, mlflow-skinny and mlflow-tracing are one release: of another, the store may have other tables."""
    found = pins()
    assert found["mlflow"] == found["mlflow-skinny"] == found["mlflow-tracing"]
