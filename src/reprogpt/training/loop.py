"""One update, and the loop as a generator of records. Nothing here prints, logs or writes."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reprogpt.model.generation import generate
from reprogpt.training.evaluation import Score, require_finite, score
from reprogpt.training.gradients import measure
from reprogpt.training.parallel import before_the_last_part
from reprogpt.training.schedule import learning_rate_at
from reprogpt.training.state import Rows, Training


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step leaves; field names, but for sample, are the columns of history.csv.

    step and epoch are 0-based; tokens_seen counts inputs up to and including this step; losses are in
    nats per token. train_loss and val_loss are set on evaluation steps only. sample, on the last step
    of a sampled epoch, is the prompt's token ids and their greedy continuation.
    """

    step: int
    epoch: int
    tokens_seen: int
    lr: float
    loss: float
    max_grad: float
    max_grad_clipped: float
    grad_norm: float
    train_loss: float | None = None
    val_loss: float | None = None
    sample: list[int] | None = None


def train(training: Training) -> Iterator[StepRecord]:
    """Train from training.step to the end of the plan, yielding a record per step.

    Records may lag behind, where steps_together is above 1: a step's numbers are fetched from the device with
    those of others. Where record.step + 1 == training.step, the training is at rest and its records are
    complete: what is saved then is all that the rest needs.
    Raises NonFiniteError at the first step whose loss or gradient is not finite.
    """
    params, plan = training.params, training.plan
    pending: list[_Step] = []
    while training.step < plan.total_steps:
        pending.append(_take_step(training))
        step = training.step
        training.step += 1
        is_evaluated = bool(params.eval_freq) and step % params.eval_freq == 0
        is_sampled = bool(params.sample_freq) and (step + 1) % (params.sample_freq * plan.steps_per_epoch) == 0
        is_last = training.step == plan.total_steps
        if is_evaluated or is_sampled or is_last or len(pending) == training.steps_together:
            *before, last = _records(pending)
            pending.clear()
            yield from before
            train_loss, val_loss = _evaluate(training, step) if is_evaluated else (None, None)
            sample = _sample(training) if is_sampled else None
            yield replace(last, train_loss=train_loss, val_loss=val_loss, sample=sample)


@dataclass(frozen=True)
class _Step:
    """A step whose numbers are still on the device."""

    step: int
    epoch: int
    tokens_seen: int
    lr: float
    measured: Tensor  # loss, max_grad, max_grad_clipped, grad_norm: float32 (4,)


def _take_step(training: Training) -> _Step:
    params, plan, step = training.params, training.plan, training.step
    epoch, position = divmod(step, plan.steps_per_epoch)
    rows = training.order.training_rows(epoch, len(training.train_rows.inputs))
    batch = training.train_rows.take(rows[position * params.batch_size :][: params.batch_size])
    training.order.begin_step(step)
    lr, loss = _rate(training), training.group.mean(accumulate_gradients(training, batch.take(training.group.share)))
    is_clipped = step >= plan.warmup_steps + int(params.orig_book_version)
    sizes, divisor = measure(training.model.parameters(), params.max_norm if is_clipped else None)
    descend(training, lr, divisor)
    return _Step(step, epoch, (step + 1) * batch.inputs.size, lr, torch.cat([loss.view(1), sizes]))


def _records(steps: list[_Step]) -> list[StepRecord]:
    """The steps' numbers, in one transfer: each alone would wait for the device."""
    names = ("loss", "max_grad", "max_grad_clipped", "grad_norm")
    records = []
    for step, values in zip(steps, torch.stack([step.measured for step in steps]).tolist(), strict=True):
        measured = dict(zip(names, values, strict=True))
        require_finite(measured, f"step {step.step}")
        records.append(StepRecord(step.step, step.epoch, step.tokens_seen, step.lr, **measured))
    return records


def _rate(training: Training) -> float:
    params, plan = training.params, training.plan
    return learning_rate_at(
        training.step,
        initial_lr=params.initial_lr,
        peak_lr=params.peak_lr,
        min_lr=params.min_lr,
        warmup_steps=plan.warmup_steps,
        total_steps=plan.total_steps,
        lr_decay=params.lr_decay,
    )


def accumulate_gradients(training: Training, batch: Rows) -> Tensor:
    """Fill the gradients of a batch, in as many parts as `accumulate` says; return its loss, on the device.

    batch: this process's share, whose loss is returned; gradients become those of all shares together.
    """
    training.model.train()
    training.optimizer.zero_grad(set_to_none=True)
    num_parts = training.params.accumulate
    num_rows = len(batch.inputs) // num_parts
    losses = []
    for part in range(num_parts):
        with before_the_last_part(training.loss) if part + 1 < num_parts else nullcontext():
            loss = loss_of(training, batch.take(slice(part * num_rows, (part + 1) * num_rows))) / num_parts
            torch.autograd.backward(loss)
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def loss_of(training: Training, rows: Rows) -> Tensor:
    """Mean cross-entropy of rows in train mode, nats per token: a float32 scalar that remembers how it was made."""
    device = training.numerics.device
    inputs, targets = (torch.from_numpy(ids).to(device) for ids in (rows.inputs, rows.targets))
    with training.numerics.autocast():
        return training.loss(inputs, targets)


def descend(training: Training, lr: float, divisor: Tensor | None) -> None:
    """One step of the optimizer, on gradients that are divided by divisor."""
    for group in training.optimizer.param_groups:
        group["lr"] = lr
    # What torch's GradScaler sets, too: the fused kernel divides each gradient as it reads it.
    training.optimizer.grad_scale = divisor  # type: ignore[attr-defined]
    training.optimizer.step()


def _evaluate(training: Training, step: int) -> tuple[float, float]:
    """Losses on the first eval_iter batches of each split, as the order visits the training rows."""
    params = training.params
    num_rows = params.eval_iter * params.batch_size
    rows = training.order.evaluation_rows(len(training.train_rows.inputs))[:num_rows]
    parts = {"train_loss": training.train_rows.take(rows), "val_loss": training.val_rows.take(slice(num_rows))}
    losses = {name: _shared_score(training, part).loss for name, part in parts.items()}
    require_finite(losses, f"step {step}")
    return losses["train_loss"], losses["val_loss"]


def _shared_score(training: Training, rows: Rows) -> Score:
    """The score of rows, of which each process reads its share."""
    group, num_rows = training.group, training.params.rows_together
    arithmetic: dict[str, Any] = {"batch_size": num_rows, "numerics": training.numerics}
    own = rows.take(group.share)
    scored = score(training.model, own.inputs, own.targets, **arithmetic)
    most = -(-len(rows.inputs) // group.size)
    if -(-len(own.inputs) // num_rows) < -(-most // num_rows):  # with fsdp, all must read equally often
        score(training.model, rows.inputs[:1], rows.targets[:1], **arithmetic)
    loss_nats, correct, num_tokens = group.sums(scored.loss_nats, scored.correct, scored.num_tokens)
    return Score(loss_nats, int(correct), int(num_tokens))


def _sample(training: Training) -> list[int]:
    with training.numerics.autocast():
        return training.prompt + list(generate(training.model, training.prompt, training.params.max_new_tokens))
