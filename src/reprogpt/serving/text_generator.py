"""The MLflow model: prompts in, prompts with their continuations out.

MLflow runs this file itself ("models from code", no pickle) from the copy in the model's folder, beside
`checkpoint/`, the Hugging Face directory, and `code/`, the files of this package that it imports, which
mlflow_model.py writes. So a model serves the code it was trained with, whatever has changed since.
"""

import os
import time
from collections.abc import Iterator, Mapping
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
from reprogpt.model.generation import generate
from reprogpt.model.hf_directory import load_model, trained_on_documents
from reprogpt.numerics.device import temporary_numerics
from reprogpt.params.sampling_limits import (
    DEFAULT_LIMITS,
    MAX_NEW_TOKENS,
    MAX_SEED,
    MAX_TOP_K,
    TEMPERATURE_RANGE,
    is_valid_temperature,
)
from reprogpt.paths import CHECKPOINT_ARTIFACT

ARITHMETIC = {"device": "auto", "precision": "fp32", "matmul": "auto"}  # as `reprogpt generate`


class TextGenerator(PythonModel):
    """Continues prompts as `reprogpt generate` does: the same prompt, parameters and seed give the same text."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights and vocabulary from the checkpoint; the model's configuration has the limits of a request."""
        self._limits = {**DEFAULT_LIMITS, **(context.model_config or {})}
        folder = Path(context.artifacts[CHECKPOINT_ARTIFACT])
        with temporary_numerics(**ARITHMETIC) as numerics:
            self._model = load_model(folder).to(numerics.device)
        self._on_documents = trained_on_documents(folder)
        self._encoding = read_encoding(folder)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,  # with another hint MLflow infers a signature and drops ours
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Each row's `text` is its `prompt` continued by max_new_tokens tokens, independent of the other rows.

        params: max_new_tokens, temperature, top_k and seed, with the bounds of `reprogpt generate`, and
        stop_at_end_of_text and from_start (its --from-start); max_new_tokens is bounded by the model's configuration,
        too, as is the time of a request: its client may have gone long ago.
        Raises MlflowException (HTTP status 400 when served) for a value out of bounds, an empty prompt, tokens
        outside the model's vocabulary, or a request that takes too long.
        """
        assert params is not None  # the signature has a default for each
        _check(params, self._limits["max_new_tokens"])
        deadline = time.monotonic() + self._limits["max_seconds"]
        with temporary_numerics(**ARITHMETIC):
            texts = [self._continue(prompt, params, deadline) for prompt in model_input["prompt"]]
        return pd.DataFrame({"text": texts})

    def _continue(self, prompt: str, params: Mapping[str, Any], deadline: float) -> str:
        if not isinstance(prompt, str):  # as in {"prompt": ["a", "b"]}, which MLflow reads as one row
            raise _invalid_parameter(f"prompt is {prompt!r}, not a text; give a table with a row for each prompt")
        ids = self._encoding.encode_ordinary(prompt)
        if params["from_start"]:
            if not self._on_documents:
                raise _invalid_parameter("from_start needs a model that was trained on several documents")
            ids = [self._encoding.eot_token, *ids]
        vocab_size = self._model.config.vocab_size
        if not ids:
            raise _invalid_parameter("prompt is empty; give a text of at least one character")
        if max(ids) >= vocab_size:
            word = self._encoding.decode([max(ids)])
            raise _invalid_parameter(
                f"prompt has token {max(ids)} ({word!r}), but this model's vocabulary is 0 to {vocab_size - 1}"
            )
        tokens = generate(
            self._model,
            ids,
            params["max_new_tokens"],
            temperature=params["temperature"],
            top_k=params["top_k"],
            generator=torch.Generator().manual_seed(params["seed"]),
            stop_token=self._encoding.eot_token if self._on_documents and params["stop_at_end_of_text"] else None,
        )
        return prompt + decode(self._encoding, list(self._in_time(tokens, deadline)))

    def _in_time(self, tokens: Iterator[int], deadline: float) -> Iterator[int]:
        for token in tokens:
            if time.monotonic() > deadline:
                raise _invalid_parameter(
                    f"the request took longer than max_seconds={self._limits['max_seconds']} of the model's "
                    "configuration; ask for fewer tokens or prompts at a time"
                )
            yield token


def read_encoding(folder: Path) -> tiktoken.Encoding:
    """tiktoken's GPT-2 encoding, from the vocabulary files of a checkpoint: needs no network and no cache."""
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""  # else tiktoken caches files by their path, and would read a stale one later
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


def _check(params: Mapping[str, Any], max_new_tokens: int) -> None:
    for name, value in params.items():
        if value is None:
            raise _invalid_parameter(f"{name} is null; leave it out for the model's default")
    for name, maximum in {"max_new_tokens": min(max_new_tokens, MAX_NEW_TOKENS), "top_k": MAX_TOP_K}.items():
        if not 1 <= params[name] <= maximum:
            raise _invalid_parameter(f"{name} is {params[name]}, but must be from 1 to {maximum}")
    if not is_valid_temperature(params["temperature"]):
        raise _invalid_parameter(f"temperature is {params['temperature']}, but must be {TEMPERATURE_RANGE}")
    if not 0 <= params["seed"] <= MAX_SEED:
        raise _invalid_parameter(f"seed is {params['seed']}, but must be from 0 to {MAX_SEED}")


def _invalid_parameter(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(TextGenerator())
