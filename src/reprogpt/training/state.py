"""A training made ready: data in rows, plan, model, optimizer, and the order of random draws."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from reprogpt.corpus.windows import Windows, windows
from reprogpt.errors import DataError, DeviceError
from reprogpt.model.gpt import GPTConfig, GPTModel
from reprogpt.model.importing import read_start
from reprogpt.numerics import Numerics
from reprogpt.params.train import TrainParams
from reprogpt.training.randomness import BookOrder, IndependentOrder, RandomOrder
from reprogpt.training.schedule import Plan, plan_training

# On a GPU, which works behind the program's back: so many steps that waiting for one transfer costs nothing, so
# few that a person sees the loss move. On the CPU there is nothing to wait for.
STEPS_TOGETHER = 16


@dataclass(frozen=True)
class Rows:
    """A batch of rows in memory: inputs and targets, (b, T) int64 each."""

    inputs: np.ndarray
    targets: np.ndarray

    def take(self, rows: np.ndarray | slice) -> "Rows":
        """The rows of these indices."""
        return Rows(self.inputs[rows], self.targets[rows])


@dataclass(frozen=True)
class SplitRows:
    """A split cut into rows that are made when they are taken: inputs and targets, (w, T) each."""

    inputs: Windows
    targets: Windows

    def take(self, rows: np.ndarray | slice) -> Rows:
        """The rows of these indices, in memory. Raises DataError if a token is outside the vocabulary."""
        return Rows(self.inputs[rows], self.targets[rows])


@dataclass
class Training:
    """Everything a training needs. Steps change model, optimizer, step and, in book order, order; nothing else.

    features: model.features, compiled where `compile` says so.
    steps_together: steps whose numbers are fetched from the device in one go.
    started_from: started_from_sha256, the digest of the weights in init_from as they were found; {} without any.
    """

    params: TrainParams
    numerics: Numerics
    plan: Plan
    train_rows: SplitRows
    val_rows: SplitRows
    prompt: list[int]
    order: RandomOrder
    model: GPTModel
    optimizer: torch.optim.AdamW
    features: Callable[[Tensor], Tensor]
    steps_together: int
    started_from: dict[str, str] = field(default_factory=dict)
    step: int = 0  # the next one


def prepare_training(
    train_ids: np.ndarray, val_ids: np.ndarray, *, prompt: list[int], params: TrainParams, numerics: Numerics
) -> Training:
    """Cut the rows, plan the steps, draw the weights or read those of init_from.

    Weights are drawn on the CPU, so every device starts from the same ones. Where others take their place they are
    drawn all the same: what is drawn later does not depend on it.
    Raises DataError if a split or the prompt does not fit the parameters, DeviceError if compile is not for the device,
    ParamsError if init_from can't be started from.
    """
    if max(prompt) >= params.vocab_size:
        raise DataError(f"start_context holds token id {max(prompt)}, but vocab_size={params.vocab_size}")
    _require_compilable(params, numerics)
    train_rows = _rows("training", train_ids, params, stride=params.stride)
    val_rows = _rows("validation", val_ids, params, stride=params.context_length)
    plan = plan_training(
        len(train_rows.inputs),
        batch_size=params.batch_size,
        n_epochs=params.n_epochs,
        warmup_ratio=params.warmup_ratio,
    )
    is_book = params.random_order == "book"
    order: RandomOrder = BookOrder(params.seed) if is_book else IndependentOrder(params.seed, numerics.device)
    order.seed_weights()
    config = GPTConfig(**{key: getattr(params, key) for key in GPTConfig.__dataclass_fields__})
    model = GPTModel(config, order.dropout)
    started_from = _start_from(model, params) if params.init_from else {}
    model.to(numerics.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.peak_lr, weight_decay=params.weight_decay, fused=True)
    return Training(
        params,
        numerics,
        plan,
        train_rows,
        val_rows,
        prompt,
        order,
        model,
        optimizer,
        features=torch.compile(model.features) if params.compile else model.features,
        steps_together=1 if numerics.device.type == "cpu" else STEPS_TOGETHER,
        started_from=started_from,
    )


def _start_from(model: GPTModel, params: TrainParams) -> dict[str, str]:
    """Give the model the weights of init_from; what is recorded of them."""
    start = read_start(params.init_from, params.init_from_sha256, model.config)
    model.load_state_dict(start.weights)
    return {"started_from_sha256": start.sha256}


def _rows(split: str, ids: np.ndarray, params: TrainParams, *, stride: int) -> SplitRows:
    try:
        cut = windows(ids, context_length=params.context_length, stride=stride, vocab_size=params.vocab_size)
    except DataError as error:
        raise DataError(f"{split} text: {error}") from None
    return SplitRows(*cut)


def _require_compilable(params: TrainParams, numerics: Numerics) -> None:
    if params.compile and numerics.device.type == "cpu":
        raise DeviceError(
            "compile: true is for a GPU; on the CPU compiled weights differ from run to run in their bits, and it is "
            "no faster. Set compile to false"
        )
