"""A training made ready: data in rows, plan, model, optimizer, and the order of random draws."""

from dataclasses import dataclass

import numpy as np
import torch

from reprogpt.corpus.windows import windows
from reprogpt.errors import DataError
from reprogpt.model.gpt import GPTConfig, GPTModel
from reprogpt.numerics import Numerics
from reprogpt.params.train import TrainParams
from reprogpt.training.randomness import BookOrder, IndependentOrder, RandomOrder
from reprogpt.training.schedule import Plan, plan_training


@dataclass(frozen=True)
class Rows:
    """A split cut into rows: inputs and targets, (w, T) int64 each."""

    inputs: np.ndarray
    targets: np.ndarray

    def take(self, rows: np.ndarray | slice) -> "Rows":
        """The rows of these indices."""
        return Rows(self.inputs[rows], self.targets[rows])


@dataclass
class Training:
    """Everything a training needs. Steps change model, optimizer, step and, in book order, order; nothing else."""

    params: TrainParams
    numerics: Numerics
    plan: Plan
    train_rows: Rows
    val_rows: Rows
    prompt: list[int]
    order: RandomOrder
    model: GPTModel
    optimizer: torch.optim.AdamW
    step: int = 0  # the next one


def prepare_training(
    train_ids: np.ndarray, val_ids: np.ndarray, *, prompt: list[int], params: TrainParams, numerics: Numerics
) -> Training:
    """Cut the rows, plan the steps, draw the weights.

    Weights are drawn on the CPU, so every device starts from the same ones.
    Raises DataError if a split or the prompt does not fit the parameters.
    """
    if max(prompt) >= params.vocab_size:
        raise DataError(f"start_context holds token id {max(prompt)}, but vocab_size={params.vocab_size}")
    train_rows = _rows("training", train_ids, params.context_length, params.stride)
    val_rows = _rows("validation", val_ids, params.context_length, params.context_length)
    plan = plan_training(
        len(train_rows.inputs),
        batch_size=params.batch_size,
        n_epochs=params.n_epochs,
        warmup_ratio=params.warmup_ratio,
    )
    order: RandomOrder = (BookOrder if params.random_order == "book" else IndependentOrder)(params.seed)
    order.seed_weights()
    config = GPTConfig(**{key: getattr(params, key) for key in GPTConfig.__dataclass_fields__})
    model = GPTModel(config, order.dropout).to(numerics.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.peak_lr, weight_decay=params.weight_decay, fused=True)
    return Training(params, numerics, plan, train_rows, val_rows, prompt, order, model, optimizer)


def _rows(split: str, ids: np.ndarray, context_length: int, stride: int) -> Rows:
    try:
        return Rows(*windows(ids, context_length=context_length, stride=stride))
    except DataError as error:
        raise DataError(f"{split} text: {error}") from None
