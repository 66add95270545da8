"""The trained model as MLflow runs it: prompts in, each with its continuation out.

MLflow runs this file itself (models from code: there is no pickle) from the copy in the model's folder, beside
`checkpoint/`, the Hugging Face directory, and `code/`, the files of this package that it imports: packing.py puts
them there. So a model answers as on the day it was trained, whatever became of the code since.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import tiktoken
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str

from reprogpt.corpus.tokens import VOCABULARY_FILES, decode
from reprogpt.model.checkpoint import load_model
from reprogpt.model.generation import generate
from reprogpt.numerics import set_up_numerics
from reprogpt.sampling import LEAST_TEMPERATURE, MOST_SEED, MOST_TEMPERATURE, is_temperature

CHECKPOINT = "checkpoint"  # the artifact's name


class TextGenerator(PythonModel):
    """Continues texts as `reprogpt generate` does: the same prompt, parameters and seed give the same text."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights and vocabulary, both from the checkpoint."""
        folder = Path(context.artifacts[CHECKPOINT])
        self._device = set_up_numerics(device="auto", precision="fp32", matmul="auto").device
        self._model = load_model(folder).to(self._device)
        self._encoding = read_encoding(folder)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,  # from any other hint MLflow makes a signature, and drops ours with its parameters
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """A row's `text` is its `prompt` and max_new_tokens more; it does not depend on the other rows.

        params: max_new_tokens, temperature, top_k and seed, each within the bounds of the command line.
        Raises MlflowException, HTTP status 400 when served, for a value out of bounds or a prompt that is empty or
        has tokens unknown to the model.
        """
        assert params is not None  # the signature has a default for each
        _check(params)
        return pd.DataFrame({"text": [self._continued(prompt, params) for prompt in model_input["prompt"]]})

    def _continued(self, prompt: str, params: Mapping[str, Any]) -> str:
        if not isinstance(prompt, str):  # as in {"prompt": ["a", "b"]}, which MLflow takes for one row
            raise _refusal(f"prompt is {prompt!r}, not a text; give a table with a row for each prompt")
        ids, vocab_size = self._encoding.encode_ordinary(prompt), self._model.config.vocab_size
        if not ids:
            raise _refusal("prompt is empty; give a text of at least one character")
        if max(ids) >= vocab_size:
            word = self._encoding.decode([max(ids)])
            raise _refusal(f"prompt has token {max(ids)} ({word!r}), but this model knows 0 to {vocab_size - 1} only")
        tokens = generate(
            self._model,
            ids,
            params["max_new_tokens"],
            temperature=params["temperature"],
            top_k=params["top_k"],
            stream=torch.Generator().manual_seed(params["seed"]),
        )
        return prompt + decode(self._encoding, list(tokens))


def read_encoding(folder: Path) -> tiktoken.Encoding:
    """tiktoken's GPT-2 encoding, made from the vocabulary in a checkpoint: needs no network and no cache."""
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""  # or it would keep a copy of any file by its path, and take that for it later
    try:
        ranks = data_gym_to_mergeable_bpe_ranks(
            vocab_bpe_file=str(folder / VOCABULARY_FILES["vocab.bpe"]),
            encoder_json_file=str(folder / VOCABULARY_FILES["encoder.json"]),
        )
    finally:
        del os.environ["TIKTOKEN_CACHE_DIR"]
        if before is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = before
    special = {ENDOFTEXT: len(ranks)}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def _check(params: Mapping[str, Any]) -> None:
    for name in ("max_new_tokens", "top_k"):
        if params[name] < 1:
            raise _refusal(f"{name} is {params[name]}, but must be at least 1")
    if not is_temperature(params["temperature"]):
        bounds = f"0 or from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}"
        raise _refusal(f"temperature is {params['temperature']}, but must be {bounds}")
    if not 0 <= params["seed"] <= MOST_SEED:
        raise _refusal(f"seed is {params['seed']}, but must be from 0 to {MOST_SEED}")


def _refusal(words: str) -> MlflowException:
    return MlflowException(words, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(TextGenerator())
