"""What one contender does: a step by its phases, an evaluation, a sample.

Contenders: book (baseline.py), fp32 and bf16 (this package, by `precision`).
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.baseline import MODEL_KEYS, PlainGPT, batches_of, evaluate, find_highest_gradient, loss_of, plain_sample
from reprogpt.evaluation.losses import sum_losses
from reprogpt.model.generate import generate
from reprogpt.numerics.allocator import retain_freed_memory
from reprogpt.numerics.device import has_fast_bf16, set_up_numerics
from reprogpt.params.loader import read_mapping
from reprogpt.params.train import TrainParams
from reprogpt.training.batches import Batch, to_device
from reprogpt.training.build import Training, training_from_ids
from reprogpt.training.gradients import gradient_stats
from reprogpt.training.loop import batch_loss, optimizer_step

CONTENDERS = ("book", "fp32", *(["bf16"] if has_fast_bf16() else []))  # without it, bf16 is refused
PHASES = ("forward", "backward", "gradients", "optimiser")
PROMPT = [6109, 3626, 6100, 345]  # "Every effort moves you"
Work = dict[str, Callable[[], dict[str, float]]]


def read_params(path: Path, precision: str = "fp32") -> TrainParams:
    """Those of a params.yaml, on the CPU, without what belongs to a training's course; a batch is read in one part."""
    values = read_mapping(path)
    values |= {"device": "cpu", "precision": precision, "numerics": "native", "random_order": "independent"}
    values |= {"accumulate": 1, "compile": False}
    return TrainParams(**{key: values[key] for key in TrainParams.model_fields})


def random_ids(params: TrainParams, num_rows: int) -> np.ndarray:
    """Token ids that make num_rows rows; which ones they are costs nothing."""
    num_ids = num_rows * params.stride + params.context_length - params.stride + 1
    return np.random.default_rng(0).integers(0, params.vocab_size, num_ids).astype(np.uint16)


def prompt_of(params: TrainParams) -> list[int]:
    return [number % params.vocab_size for number in PROMPT]


def our_work(params: TrainParams) -> Work:
    """The package's step, evaluation and sample, each with the seconds it takes."""
    retain_freed_memory()
    numerics = set_up_numerics(**params.arithmetic())
    ids = random_ids(params, 4 * params.batch_size)
    training = training_from_ids(ids, ids, prompt=prompt_of(params), params=params, numerics=numerics)
    batch = training.train_rows.take(slice(params.batch_size))

    def evaluation() -> None:
        for rows in (training.train_rows, training.val_rows):
            some = rows.take(slice(params.eval_iter * params.batch_size))
            sum_losses(training.model, some.inputs, some.targets, batch_size=params.batch_size, numerics=numerics)

    def sample() -> None:
        with numerics.autocast():
            list(generate(training.model, training.prompt, params.max_new_tokens))

    return {
        "step": lambda: _our_step(training, batch.inputs, batch.targets),
        "evaluation": lambda: _timed(evaluation),
        "sample": lambda: _timed(sample),
    }


def _our_step(training: Training, inputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    model, params = training.model.train(), training.params
    clocks = [time.perf_counter()]
    training.randomness.begin_step(training.step)
    training.optimizer.zero_grad(set_to_none=True)
    loss = batch_loss(training, *to_device(Batch(inputs, targets), training.numerics.device))
    clocks.append(time.perf_counter())
    torch.autograd.backward(loss)
    clocks.append(time.perf_counter())
    _, divisor = gradient_stats(model.parameters(), params.max_norm)
    clocks.append(time.perf_counter())
    optimizer_step(training, params.peak_lr, divisor)
    clocks.append(time.perf_counter())
    return _phases(clocks)


def plain_work(params: TrainParams) -> Work:
    """The same of the plain formulation."""
    torch.manual_seed(params.seed)
    model = PlainGPT(**{key: getattr(params, key) for key in MODEL_KEYS}).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.peak_lr, weight_decay=params.weight_decay)
    num_rows = params.eval_iter * params.batch_size
    ids = torch.from_numpy(random_ids(params, 4 * params.batch_size).astype(np.int64))
    rows = ids.unfold(0, params.context_length + 1, params.stride)
    inputs, targets = rows[:num_rows, :-1], rows[:num_rows, 1:]
    batches = batches_of(inputs, targets, batch_size=params.batch_size, shuffle=False)

    def evaluation() -> None:
        for _ in range(2):
            evaluate(model, batches, params.eval_iter)

    return {
        "step": lambda: _plain_step(model, optimizer, *next(iter(batches)), max_norm=params.max_norm),
        "evaluation": lambda: _timed(evaluation),
        "sample": lambda: _timed(lambda: plain_sample(model, prompt_of(params), params.max_new_tokens)),
    }


def _plain_step(
    model: PlainGPT, optimizer: torch.optim.AdamW, inputs: Tensor, targets: Tensor, *, max_norm: float | None
) -> dict[str, float]:
    clocks = [time.perf_counter()]
    optimizer.zero_grad()
    loss = loss_of(model, inputs, targets)
    clocks.append(time.perf_counter())
    torch.autograd.backward(loss)
    clocks.append(time.perf_counter())
    find_highest_gradient(model)
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=max_norm)
    clocks.append(time.perf_counter())
    optimizer.step()
    clocks.append(time.perf_counter())
    return _phases(clocks)


def _phases(clocks: list[float]) -> dict[str, float]:
    seconds = dict(zip(PHASES, (after - before for before, after in itertools.pairwise(clocks)), strict=True))
    return {"seconds": clocks[-1] - clocks[0], **seconds}


def _timed(work: Callable[[], Any]) -> dict[str, float]:
    started = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - started}
