"""One update, and the loop as a generator of records. Nothing here prints, logs or writes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from reprogpt.model.generation import generate
from reprogpt.training.evaluation import require_finite, score
from reprogpt.training.gradients import measure_and_clip
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

    Between two records a training is at rest: what is saved then is all that the rest needs.
    Raises NonFiniteError at the step whose loss or gradient is not finite.
    """
    params, plan = training.params, training.plan
    while training.step < plan.total_steps:
        step = training.step
        epoch, position = divmod(step, plan.steps_per_epoch)
        rows = training.order.training_rows(epoch, len(training.train_rows.inputs))
        batch = training.train_rows.take(rows[position * params.batch_size :][: params.batch_size])
        training.order.begin_step(step)
        lr, measured = _rate(training), _forward_and_backward(training, batch)
        _descend(training, lr)
        losses = _evaluate(training) if params.eval_freq and step % params.eval_freq == 0 else {}
        training.step += 1
        is_last = position == plan.steps_per_epoch - 1
        sample = _sample(training) if is_last and params.sample_freq and (epoch + 1) % params.sample_freq == 0 else None
        yield StepRecord(step, epoch, training.step * batch.inputs.size, lr, **measured, **losses, sample=sample)


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


def _forward_and_backward(training: Training, batch: Rows) -> dict[str, float]:
    """Fill the gradients, clipped after warmup; return loss and gradient sizes by StepRecord's names."""
    params, step, device = training.params, training.step, training.numerics.device
    training.model.train()
    training.optimizer.zero_grad(set_to_none=True)
    with training.numerics.autocast():
        logits = training.model(torch.from_numpy(batch.inputs).to(device)).flatten(0, 1)
        loss = functional.cross_entropy(logits, torch.from_numpy(batch.targets).to(device).flatten())
    torch.autograd.backward(loss)
    first_clipped = training.plan.warmup_steps + int(params.orig_book_version)
    gradients = measure_and_clip(training.model.parameters(), params.max_norm if step >= first_clipped else None)
    # One transfer for all values: each alone would wait for the device.
    values = torch.cat([loss.detach().float().view(1), gradients]).tolist()
    measured = dict(zip(("loss", "max_grad", "max_grad_clipped", "grad_norm"), values, strict=True))
    require_finite(measured, f"step {step}")
    return measured


def _descend(training: Training, lr: float) -> None:
    for group in training.optimizer.param_groups:
        group["lr"] = lr
    training.optimizer.step()


def _evaluate(training: Training) -> dict[str, float]:
    """Losses on the first eval_iter batches of each split, as the order visits the training rows."""
    params = training.params
    num_rows = params.eval_iter * params.batch_size
    rows = training.order.evaluation_rows(len(training.train_rows.inputs))[:num_rows]
    parts = {"train_loss": training.train_rows.take(rows), "val_loss": training.val_rows.take(slice(num_rows))}
    losses = {}
    for name, part in parts.items():
        losses[name] = score(
            training.model, part.inputs, part.targets, batch_size=params.batch_size, numerics=training.numerics
        ).loss
    require_finite(losses, f"step {training.step}")
    return losses


def _sample(training: Training) -> list[int]:
    with training.numerics.autocast():
        return training.prompt + list(generate(training.model, training.prompt, training.params.max_new_tokens))
