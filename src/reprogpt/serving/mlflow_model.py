"""Writes the files with which MLflow serves a trained model, except the weights.

They are written when the training ends and kept in its outbox: by the time they are uploaded, the code that trained
the weights may have changed, or its folder may be deleted.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import reprogpt.mlflow_settings

# isort: split
import mlflow.pyfunc
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType

from reprogpt.errors import ParamsError
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.loader import load_params, read_mapping
from reprogpt.params.sampling_limits import DEFAULT_LIMITS
from reprogpt.paths import CHECKPOINT_ARTIFACT

SERVING_SCRIPT = Path(__file__).with_name("text_generator.py")
# What text_generator.py imports, directly or not, from this package and from others; tests/test_dag.py compares both
# lists with the code.
CODE = (
    "__init__.py",
    "data/__init__.py",
    "data/tokens.py",
    "errors.py",
    "files.py",
    "messages.py",
    "model/__init__.py",
    "model/generate.py",
    "model/gpt.py",
    "model/gpt2_format.py",
    "model/kv_cache.py",
    "numerics/__init__.py",
    "numerics/device.py",
    "numerics/env_vars.py",
    "numerics/portable.py",
    "numerics/portable_kernels.py",
    "numerics/portable_matmul.py",
    "numerics/thread_pool.py",
    "params/__init__.py",
    "params/sampling_limits.py",
    "paths.py",
)
LIBRARIES = (
    "mlflow",
    "numpy",
    "pandas",
    "platformdirs",
    "psutil",
    "safetensors",
    "tiktoken",
    "torch",
)


def write_mlflow_model(folder: Path, params: Mapping[str, Any]) -> dict[str, Any]:
    """Write the MLflow model's files into a new folder, except checkpoint and MLmodel; returns MLmodel's contents.

    params: train's.
    """
    code = folder.with_name(f"{folder.name}-code") / "reprogpt"
    for name in CODE:
        copy = code / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(reprogpt.__file__).parent / name, copy)
    with _log_errors_only("mlflow"):
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(SERVING_SCRIPT),
            code_paths=[str(code)],
            signature=_signature(params),
            model_config=_limits(params),
            input_example=pd.DataFrame({"prompt": [params["start_context"]]}),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in LIBRARIES],
        )
    shutil.rmtree(code.parent)
    # Not Model.load: it takes a path for a URI, and would look in another folder where the path has a %20.
    model = Model.from_dict(read_mapping(folder / "MLmodel"))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = SERVING_SCRIPT.name  # not its path on this machine
    flavor["artifacts"] = {CHECKPOINT_ARTIFACT: {"path": CHECKPOINT_ARTIFACT, "uri": CHECKPOINT_ARTIFACT}}
    (folder / "MLmodel").unlink()
    return dict(model.to_dict())


def _signature(params: Mapping[str, Any]) -> ModelSignature:
    """Column `prompt` in, column `text` out; parameters with the defaults of `reprogpt generate`."""
    temperature, top_k, stop_at_end_of_text = _sampling_defaults()
    defaults = [
        ParamSpec("max_new_tokens", "long", params["max_new_tokens"]),
        ParamSpec("temperature", "double", temperature),
        ParamSpec("top_k", "long", top_k),
        ParamSpec("seed", "long", params["seed"]),
        ParamSpec("stop_at_end_of_text", "boolean", stop_at_end_of_text),
        ParamSpec("from_start", "boolean", False),
    ]
    # In a column of strings, MLflow's server converts all values: null becomes the text "None", 1 becomes "1".
    # text_generator.py refuses a value that is not text.
    prompt = Schema([ColSpec(AnyType(), "prompt")])
    text = Schema([ColSpec("string", "text")])
    return ModelSignature(prompt, text, ParamSchema(defaults))


def _limits(params: Mapping[str, Any]) -> dict[str, Any]:
    """The limits of a request, recorded with the model; the default of max_new_tokens is always allowed."""
    return {**DEFAULT_LIMITS, "max_new_tokens": max(DEFAULT_LIMITS["max_new_tokens"], params["max_new_tokens"])}


def _sampling_defaults() -> tuple[float, int, bool]:
    """temperature, top_k and stop_at_end_of_text of params.yaml; greedy if one is invalid, as train checks none."""
    try:
        params = load_params(EvaluateParams)
    except ParamsError:
        return 0.0, 1, True
    return params.temperature, params.top_k, params.stop_at_end_of_text


@contextmanager
def _log_errors_only(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
