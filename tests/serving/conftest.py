"""A model in a store, as a training leaves it."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pytest
import torch
from mlflow.pyfunc import PyFuncModel

from reprogpt.data.tokens import write_tokenizer
from reprogpt.model.gpt2_format import save_model
from reprogpt.tracking.deliver.outbox import open_outbox
from reprogpt.tracking.deliver.writer import upload
from reprogpt.tracking.log.training import record_model
from reprogpt.tracking.store.client import open_store
from tests.tiny import PARAMS, tiny_model
from tests.tracking.trainings import training_record

ROOT = Path(__file__).resolve().parents[2]
TRAINED_WITH = {**PARAMS, "max_new_tokens": 50, "start_context": "Every effort moves you"}  # as in params.yaml
SIZES = {"vocab_size": 50257, "context_length": 32}


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory, own_environment: None) -> Path:
    """A repository's root after a training, and its store, which has the model."""
    folder = tmp_path_factory.mktemp("root")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    save_model(folder / "data/model", tiny_model(**SIZES))
    write_tokenizer(folder / "data/model", 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        open_store()
        outbox = open_outbox("1" * 32)
        outbox.append(training_record("1" * 32, params=TRAINED_WITH))
        record_model(outbox)
        upload(outbox)
        outbox.release()
    return folder


@pytest.fixture(scope="package")
def files(root: Path) -> Path:
    """The model's folder in the store."""
    (folder,) = root.glob("mlruns/models/*/artifacts")
    return folder


@pytest.fixture(scope="package", autouse=True)
def matmul_precision_restored() -> Iterator[None]:
    backend: Any = torch.backends.mkldnn
    before = backend.matmul.fp32_precision
    yield
    backend.matmul.fp32_precision = before


def load(folder: Path) -> PyFuncModel:
    path = list(sys.path)
    loaded = mlflow.pyfunc.load_model(str(folder))
    sys.path[:] = path  # MLflow puts the model's own code first
    return loaded


@pytest.fixture(scope="package")
def model(files: Path) -> PyFuncModel:
    return load(files)
