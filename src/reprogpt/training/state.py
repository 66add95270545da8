"""A training made ready: data in rows, plan, model, optimizer, and the order of random draws."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from reprogpt.corpus.tokens import load_encoding, read_tokens
from reprogpt.corpus.windows import windows
from reprogpt.errors import DataError, DeviceError
from reprogpt.model.gpt import GPTConfig, GPTModel
from reprogpt.model.importing import read_start
from reprogpt.numerics import Numerics
from reprogpt.params.train import TrainParams
from reprogpt.training.group import ALONE, Group
from reprogpt.training.loss import NextTokenLoss
from reprogpt.training.parallel import Loss, place_model, shared_loss
from reprogpt.training.randomness import BookOrder, IndependentOrder, RandomOrder
from reprogpt.training.schedule import Plan, plan_training

# On a GPU, which works behind the program's back: so many steps that waiting for one transfer costs nothing, so
# few that a person sees the loss move. On the CPU there is nothing to wait for.
STEPS_TOGETHER = 16


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
    """Everything a training needs. Steps change model, optimizer, step and, in book order, order; nothing else.

    group: the processes that train together; every step, each takes its share of the batch.
    loss: of rows, whose gradients are those of the whole batch.
    steps_together: steps whose numbers are fetched from the device in one go.
    started_from: started_from_sha256, the digest of the weights in init_from as they were found; {} without any.
    """

    params: TrainParams
    numerics: Numerics
    plan: Plan
    train_rows: Rows
    val_rows: Rows
    prompt: list[int]
    order: RandomOrder
    model: GPTModel
    optimizer: torch.optim.AdamW
    loss: Loss
    steps_together: int
    group: Group
    started_from: dict[str, str] = field(default_factory=dict)
    step: int = 0  # the next one

    @property
    def extent(self) -> dict[str, int]:
        """The plan's numbers of steps by their names, and num_parameters."""
        return asdict(self.plan) | {"num_parameters": sum(tensor.numel() for tensor in self.model.parameters())}


def read_training(train: Path, val: Path, *, params: TrainParams, numerics: Numerics, group: Group) -> Training:
    """prepare_training on the token files of both splits. Raises DataError if one can't be used, too."""
    prompt = load_encoding(params.encoding).encode_ordinary(params.start_context)
    ids = (read_tokens(path, vocab_size=params.vocab_size) for path in (train, val))
    return prepare_training(*ids, prompt=prompt, params=params, numerics=numerics, group=group)


def prepare_training(
    train_ids: np.ndarray,
    val_ids: np.ndarray,
    *,
    prompt: list[int],
    params: TrainParams,
    numerics: Numerics,
    group: Group = ALONE,
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
    _require_equal_shares(params, group)
    train_rows = _rows("training", train_ids, params.context_length, params.stride)
    val_rows = _rows("validation", val_ids, params.context_length, params.context_length)
    plan = plan_training(
        len(train_rows.inputs),
        batch_size=params.batch_size,
        n_epochs=params.n_epochs,
        warmup_ratio=params.warmup_ratio,
    )
    is_book = params.random_order == "book"
    order: RandomOrder = (
        BookOrder(params.seed) if is_book else IndependentOrder(params.seed, numerics.device, group.rank)
    )
    order.seed_weights()
    config = GPTConfig(**{key: getattr(params, key) for key in GPTConfig.__dataclass_fields__})
    model = GPTModel(config, order.dropout, order.replay if params.activation_checkpointing else None)
    started_from = _start_from(model, params, group) if params.init_from else {}
    place_model(model, numerics.device, params.parallel, group)
    loss = shared_loss(NextTokenLoss(model, compiled=params.compile), numerics.device, params.parallel, group)
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
        loss,
        steps_together=1 if numerics.device.type == "cpu" else STEPS_TOGETHER,
        group=group,
        started_from=started_from,
    )


def _start_from(model: GPTModel, params: TrainParams, group: Group) -> dict[str, str]:
    """Give the model of every process the weights of init_from, which the first reads; what is recorded of them."""
    start = read_start(params.init_from, params.init_from_sha256, model.config) if group.is_first else None
    for name, tensor in model.state_dict().items():
        group.give(start.weights[name] if start else None, tensor)
    return {"started_from_sha256": start.sha256} if start else {}


def _rows(split: str, ids: np.ndarray, context_length: int, stride: int) -> Rows:
    try:
        return Rows(*windows(ids, context_length=context_length, stride=stride))
    except DataError as error:
        raise DataError(f"{split} text: {error}") from None


def _require_equal_shares(params: TrainParams, group: Group) -> None:
    if params.batch_size % (params.accumulate * group.size):
        raise DataError(
            f"batch_size / accumulate = {params.batch_size} / {params.accumulate} can't be shared out equally among "
            f"{group.size} processes; change one of the three"
        )


def _require_compilable(params: TrainParams, numerics: Numerics) -> None:
    if params.compile and numerics.device.type == "cpu":
        raise DeviceError(
            "compile: true is for a GPU; on the CPU compiled weights differ from run to run in their bits, and it is "
            "no faster. Set compile to false"
        )
