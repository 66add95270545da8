"""The MLflow model of a training, all but the weights: what is put beside the checkpoint so that it answers.

Made when the training ends and kept in its box, since the code that trained the weights may have changed, or its
folder be gone, when the store takes them.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

import reprogpt
from reprogpt.errors import ParamsError
from reprogpt.params import load_params
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.record.logged_models import CHECKPOINT
from reprogpt.record.outbox import Box

MODEL = Path("data/model")
WEIGHTS = MODEL / "model.safetensors"
SERVING = Path(__file__).with_name("serving.py")
# What serving.py imports of ours, directly or not, and of others; tests/test_dag.py compares both with the code.
CODE = (
    "__init__.py",
    "corpus/__init__.py",
    "corpus/tokens.py",
    "environment.py",
    "errors.py",
    "files.py",
    "model/__init__.py",
    "model/checkpoint.py",
    "model/generation.py",
    "model/gpt.py",
    "numerics.py",
    "portable.py",
    "products.py",
    "sampling.py",
)
LIBRARIES = (
    "mlflow",
    "numpy",
    "pandas",
    "platformdirs",
    "psutil",
    "safetensors",
    "threadpoolctl",
    "tiktoken",
    "torch",
)


def record_model(box: Box) -> None:
    """Put the training's MLflow model into its box: data/model, which must be in place, and what makes it answer."""
    folder = box.folder / "model"
    shutil.rmtree(folder, ignore_errors=True)  # of a start that was killed here
    description = pack(folder, next(box.records())["params"])
    places = {path: path.parent.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    places |= {path: CHECKPOINT for path in MODEL.iterdir()}
    for path, place in places.items():
        box.append_file(path, "" if place == "." else place, kind="model file")
    size = sum(path.stat().st_size for path in places)
    box.append("model", description={**description, "model_size_bytes": size})
    shutil.rmtree(folder)


def pack(folder: Path, params: Mapping[str, Any]) -> dict[str, Any]:
    """Write the model's files into a new folder, but for the checkpoint and MLmodel; what MLmodel is to say.

    params: train's.
    """
    staged = folder.with_name(f"{folder.name}-code") / "reprogpt"
    for name in CODE:
        copy = staged / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(reprogpt.__file__).parent / name, copy)
    with _quiet("mlflow"):
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(SERVING),
            code_paths=[str(staged)],
            signature=_signature(params),
            input_example=pd.DataFrame({"prompt": [params["start_context"]]}),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in LIBRARIES],
        )
    shutil.rmtree(staged.parent)
    model = Model.load(folder)
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = SERVING.name  # not where it was on this machine
    flavor["artifacts"] = {CHECKPOINT: {"path": CHECKPOINT, "uri": CHECKPOINT}}
    (folder / "MLmodel").unlink()
    return dict(model.to_dict())


def _signature(params: Mapping[str, Any]) -> ModelSignature:
    """Column `prompt` in, column `text` out, and what `reprogpt generate` takes from params.yaml as defaults."""
    defaults = [
        ParamSpec("max_new_tokens", "long", params["max_new_tokens"]),
        *_drawing(),
        ParamSpec("seed", "long", params["seed"]),
    ]
    prompt, text = Schema([ColSpec("string", "prompt")]), Schema([ColSpec("string", "text")])
    return ModelSignature(prompt, text, ParamSchema(defaults))


def _drawing() -> list[ParamSpec]:
    """Evaluate's keys, as train does not check them; the likeliest token each time where evaluate will refuse them."""
    try:
        params = load_params(EvaluateParams)
    except ParamsError:
        temperature, top_k = 0.0, 1
    else:
        temperature, top_k = params.temperature, params.top_k
    return [ParamSpec("temperature", "double", temperature), ParamSpec("top_k", "long", top_k)]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
