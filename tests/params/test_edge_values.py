"""One bound for each value, wherever it is given: params.yaml, the command line, a request to a served model."""

from pathlib import Path
from typing import Any

import click
import pytest
from mlflow.exceptions import MlflowException
from mlflow.types import ParamSpec
from ruamel.yaml import YAML

from reprogpt.cli.check import STAGES
from reprogpt.cli.check import check as check_command
from reprogpt.cli.generate import generate
from reprogpt.errors import ParamsError
from reprogpt.params.loader import PARAMS_FILE, load_params
from reprogpt.serving.mlflow_model import _limits
from reprogpt.serving.text_generator import _check
from tests.params.test_loader import ROOT, TEXT

check: Any = check_command.callback
BITS = (0, 1, 8, 16, 31, 32, 63, 64, 100)
WHOLE = sorted({sign * (2**bits + near) for bits in BITS for near in (-1, 0, 1) for sign in (-1, 1)})
POSITIVE = [
    5e-324,
    1e-40,
    1e-5,
    0.000999,
    0.001,
    0.00101,
    0.1,
    0.999,
    1.0,
    2.5,
    999.9,
    1000.0,
    1000.1,
    1e38,
    1e39,
    1e300,
]
REAL = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), *POSITIVE, *(-value for value in POSITIVE)]
EDGES: list[Any] = [*WHOLE, *REAL, 10**400, 16**5000, True, False, None, "", "a", "0", "1e400", [], {}]
KEYS = sorted({key for stage in STAGES for key in stage.model_fields})
# key -> option of `generate`, type in MLflow's signature
SAMPLING = {
    "max_new_tokens": ("--length", "long"),
    "temperature": ("--temperature", "double"),
    "top_k": ("--top-k", "long"),
    "seed": ("--seed", "long"),
}


class File:
    """params.yaml as it is read, without the time to parse it."""

    def __init__(self) -> None:
        yaml = YAML(typ="safe", pure=True)
        self._valid, self._pipeline = yaml.load(TEXT), yaml.load(ROOT / "dvc.yaml")
        self._values: dict[str, Any] = {}

    def set(self, key: str, value: Any) -> None:
        self._values = self._valid | {key: value}

    def read(self, path: Path) -> dict[str, Any]:
        return self._values if path == PARAMS_FILE else self._pipeline


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> File:
    file = File()
    for module in ("reprogpt.params.loader", "reprogpt.cli.check"):
        monkeypatch.setattr(f"{module}.read_mapping", file.read)
    return file


def check_accepts() -> bool:
    try:
        check()
    except ParamsError as error:
        assert len(str(error)) < 2000
        return False
    return True


def stages_accept() -> bool:
    """Whether each stage takes its keys."""
    try:
        for stage in STAGES:
            load_params(stage)
    except ParamsError:
        return False
    return True


@pytest.mark.parametrize("key", KEYS)
def test_what_check_accepts_every_stage_accepts_and_the_reverse(file: File, key: str) -> None:
    accepted = []
    for value in EDGES:
        file.set(key, value)
        accepts = check_accepts()
        assert accepts == stages_accept(), value
        accepted.append(accepts)
    assert not all(accepted)


@pytest.mark.parametrize("key", KEYS)
def test_a_whole_number_that_is_accepted_fits_64_bits(file: File, key: str) -> None:
    """In which torch and MLflow keep it."""
    for value in (value for value in [*WHOLE, 10**400] if value.bit_length() > 63):
        file.set(key, value)
        floats = (float, float | None)
        is_float = any(stage.model_fields[key].annotation in floats for stage in STAGES if key in stage.model_fields)
        assert is_float or not check_accepts(), value


def parser_accepts(option: str, value: float) -> bool:
    try:
        generate.make_context("generate", [f"{option}={value}"])
    except click.BadParameter:
        return False
    return True


def served_model_accepts(key: str, value: float) -> bool:
    request: dict[str, Any] = {"max_new_tokens": 1, "temperature": 1.0, "top_k": 1, "seed": 1, key: value}
    try:
        _check(request, _limits(request)["max_new_tokens"])  # of a model whose default it is
    except MlflowException:
        return False
    return True


@pytest.mark.parametrize("key", SAMPLING)
def test_generate_and_the_served_model_accept_what_check_accepts_and_the_reverse(file: File, key: str) -> None:
    option, kind = SAMPLING[key]
    accepted = []
    for value in [*WHOLE, *REAL] if kind == "double" else WHOLE:
        file.set(key, value)
        accepts = check_accepts()
        assert (value, parser_accepts(option, value)) == (value, accepts) or value != value
        assert (value, served_model_accepts(key, value)) == (value, accepts) or value != value
        if accepts:
            ParamSpec(key, kind, value if kind == "long" else float(value))  # MLflow can hold it as the default
        accepted.append(accepts)
    assert any(accepted) and not all(accepted)
