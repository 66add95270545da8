"""The MLflow model: prompts in, prompts with their continuations out.

MLflow runs this file itself ("models from code", no pickle), from a copy in the model's folder, beside
`checkpoint/`, the Hugging Face directory, and `code/`, the files of this package that it imports, written by
mlflow_model.py. So a model is served by the code it was trained with, whatever has changed since.
"""

import logging
import os
import reprlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import tiktoken
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str

from reprogpt.data.tokens import VOCABULARY_FILES, decode
from reprogpt.model.generate import generate_batch
from reprogpt.model.gpt2_format import load_model, trained_on_documents
from reprogpt.numerics.device import Numerics, temporary_numerics
from reprogpt.params.sampling_limits import (
    DEFAULT_LIMITS,
    MAX_NEW_TOKENS,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_TOP_K,
    TEMPERATURE_RANGE,
    is_valid_temperature,
)
from reprogpt.paths import CHECKPOINT_ARTIFACT

ARITHMETIC = {"device": "auto", "precision": "fp32", "matmul": "auto"}  # as `reprogpt generate`
ROWS_AT_A_TIME = 16  # prompts per batch; in GPT-124M with context_length 1024 their KV caches take 1.2 GB

_LOGGER = logging.getLogger(__name__)


class TextGenerator(PythonModel):
    """Continues prompts as `reprogpt generate` does: the same prompt, parameters and seed give the same text.

    MLflow's server handles each request in its own thread, so several may call predict at once.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights and vocabulary from the checkpoint, and the limits of a request from the model's configuration.

        Raises MlflowException for a limit that is not a number of at least 0.
        """
        self._limits = {**DEFAULT_LIMITS, **(context.model_config or {})}
        for name in DEFAULT_LIMITS:
            limit = self._limits[name]
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 0:
                raise _invalid_parameter(f"{name} of the model's configuration is {limit!r}; give a number, at least 0")
        self._numerics = _SharedNumerics()
        folder = Path(context.artifacts[CHECKPOINT_ARTIFACT])
        with self._numerics.in_use() as numerics:
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

        model_input: a text in each row of the column `prompt`; or one row with a list of texts, as MLflow passes
        `inputs` and `instances`, for one row of answers per text.
        params: max_new_tokens, temperature, top_k and seed, with the bounds of `reprogpt generate`, and
        stop_at_end_of_text and from_start (its --from-start). The model's configuration also limits max_new_tokens,
        the number of prompts, and the time of a request, whose client may have disconnected.
        Raises MlflowException: HTTP status 400 when served, for a value out of bounds, a prompt that is not text, empty
        or too long, tokens outside the model's vocabulary, or a request that takes too long; otherwise 500, without
        the traceback, which is logged.
        """
        deadline = time.monotonic() + self._limits["max_seconds"]
        try:
            assert params is not None  # the signature has a default for each
            _check(params, self._limits["max_new_tokens"])
            prompts = self._prompts(list(model_input["prompt"]))
            ids = [self._encode(prompt, name, from_start=params["from_start"]) for name, prompt in prompts.items()]
            with self._numerics.in_use():
                continuations = self._continue(ids, params, deadline)
        except MlflowException:
            raise
        except Exception:  # MLflow's server would send the traceback, with paths of this machine
            _LOGGER.exception("a request failed")
            raise MlflowException("the request failed; the log of the server says why") from None
        texts = zip(prompts.values(), continuations, strict=True)
        return pd.DataFrame({"text": [prompt + continuation for prompt, continuation in texts]})

    def _prompts(self, rows: list[Any]) -> dict[str, str]:
        """The texts of a request, by their names in messages."""
        if len(rows) == 1 and isinstance(rows[0], list):
            rows = rows[0]
        if len(rows) > self._limits["max_prompts"]:
            raise _invalid_parameter(
                f"the request has {len(rows)} prompts, but max_prompts={self._limits['max_prompts']} of the model's "
                "configuration are allowed; send them in several requests"
            )
        if len(rows) == 1:
            return {"prompt": _text(rows[0], "prompt")}
        names = [f"prompt {number} of {len(rows)}" for number in range(1, len(rows) + 1)]
        return {name: _text(row, name) for name, row in zip(names, rows, strict=True)}

    def _encode(self, prompt: str, name: str, *, from_start: bool) -> list[int]:
        ids = self._encoding.encode_ordinary(prompt)
        if from_start:
            if not self._on_documents:
                raise _invalid_parameter("from_start needs a model that was trained on several documents")
            ids = [self._encoding.eot_token, *ids]
        vocab_size = self._model.config.vocab_size
        if not ids:
            raise _invalid_parameter(f"{name} is empty; give a text of at least one character")
        if max(ids) >= vocab_size:
            word = self._encoding.decode([max(ids)])
            raise _invalid_parameter(
                f"{name} has token {max(ids)} ({word!r}), but this model's vocabulary is 0 to {vocab_size - 1}"
            )
        return ids

    def _continue(self, prompts: list[list[int]], params: Mapping[str, Any], deadline: float) -> list[str]:
        texts = []
        for start in range(0, len(prompts), ROWS_AT_A_TIME):
            rows = prompts[start : start + ROWS_AT_A_TIME]
            continuations: list[list[int]] = [[] for _ in rows]
            steps = generate_batch(
                self._model,
                rows,
                params["max_new_tokens"],
                temperature=params["temperature"],
                top_k=params["top_k"],
                generators=[torch.Generator().manual_seed(params["seed"]) for _ in rows],
                stop_token=self._encoding.eot_token if self._on_documents and params["stop_at_end_of_text"] else None,
            )
            for tokens in self._in_time(steps, deadline):
                for row, token in tokens.items():
                    continuations[row].append(token)
            texts += [decode(self._encoding, ids) for ids in continuations]
        return texts

    def _in_time(self, steps: Iterator[dict[int, int]], deadline: float) -> Iterator[dict[int, int]]:
        for tokens in steps:
            if time.monotonic() > deadline:
                raise _invalid_parameter(
                    f"the request took longer than max_seconds={self._limits['max_seconds']} of the model's "
                    "configuration; ask for fewer tokens or prompts at a time"
                )
            yield tokens


class _SharedNumerics:
    """temporary_numerics for threads: torch's settings, which are per process, are restored by the last thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_users = 0
        self._settings = ExitStack()
        self._numerics: Numerics | None = None

    @contextmanager
    def in_use(self) -> Iterator[Numerics]:
        with self._lock:
            if self._num_users == 0:
                self._numerics = self._settings.enter_context(temporary_numerics(**ARITHMETIC))
            self._num_users += 1
            numerics = self._numerics
        assert numerics is not None
        try:
            yield numerics
        finally:
            with self._lock:
                self._num_users -= 1
                if self._num_users == 0:
                    self._settings.close()


def read_encoding(folder: Path) -> tiktoken.Encoding:
    """tiktoken's GPT-2 encoding from the vocabulary files of a checkpoint; needs no network and no cache."""
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""  # otherwise tiktoken caches files by path, and may read a stale one later
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


def _text(value: Any, name: str) -> str:
    """A prompt as it was sent; pandas turns a null in a table into NaN."""
    if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)):
        raise _invalid_parameter(f"{name} is null; give a text of at least one character")
    if not isinstance(value, str):
        shown = reprlib.repr(value.item() if isinstance(value, np.generic) else value)
        raise _invalid_parameter(f"{name} is {shown}, not text; give a quoted text for each prompt")
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise _invalid_parameter(
            f"{name} has {len(value)} characters, but at most {MAX_PROMPT_CHARACTERS} are allowed; send its end, as "
            "the model sees only the last context_length tokens"
        )
    return value


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
