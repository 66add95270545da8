"""The training loop: a generator of step records. It does not print, log or write files."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reprogpt.distributed.parallel import no_sync
from reprogpt.evaluation.losses import LossSums, require_finite, sum_losses
from reprogpt.model.generate import generate
from reprogpt.step_record import StepRecord
from reprogpt.training.batches import Batch
from reprogpt.training.build import Training
from reprogpt.training.gradients import gradient_stats
from reprogpt.training.schedule import learning_rate_at


def train(training: Training) -> Iterator[StepRecord]:
    """Train from training.step to the last step, yielding one record per optimizer step.

    On a GPU the metrics of up to training.log_interval steps are copied to the host together, so records may
    arrive late and in groups. A checkpoint may be saved whenever record.step + 1 == training.step: then all records
    up to the training's current state have been yielded.
    Raises NonFiniteError at the first step whose loss or gradient is not finite.
    """
    params = training.params
    plan = training.plan
    pending: list[_PendingStep] = []
    while training.step < plan.total_steps:
        step = training.step
        pending.append(_run_step(training))
        training.step += 1
        is_last = training.step == plan.total_steps
        # As in the book: evaluate after steps 0, eval_freq, 2 * eval_freq, ...; sample at the end of an epoch.
        is_evaluated = bool(params.eval_freq) and step % params.eval_freq == 0
        is_sampled = bool(params.sample_freq) and training.step % (params.sample_freq * plan.steps_per_epoch) == 0
        if not (is_evaluated or is_sampled or is_last or len(pending) == training.log_interval):
            continue
        records = _fetch_records(training, pending)
        pending.clear()
        yield from records[:-1]
        newest = records[-1]
        if is_evaluated:
            train_loss, val_loss = _evaluation_losses(training, step)
            newest = replace(newest, train_loss=train_loss, val_loss=val_loss)
        if is_sampled:
            newest = replace(newest, sample=_greedy_sample(training))
        yield newest


@dataclass(frozen=True)
class _PendingStep:
    """A step whose metrics are still on the device."""

    step: int
    lr: float
    metrics: Tensor  # loss, max_grad, max_grad_clipped, grad_norm: float32 (4,)


def _run_step(training: Training) -> _PendingStep:
    """Run one optimizer step and leave its metrics on the device; the caller advances training.step."""
    params = training.params
    plan = training.plan
    step = training.step
    inputs, targets = training.loader.load(step)
    training.randomness.begin_step(step)
    loss = training.group.all_reduce_mean(accumulate_gradients(training, inputs, targets))
    is_clipped = plan.first_clipped_step is not None and step >= plan.first_clipped_step
    max_norm = params.max_norm if is_clipped else None
    stats, divisor = gradient_stats(training.model.parameters(), max_norm)
    lr = learning_rate_at(
        step,
        plan,
        initial_lr=params.initial_lr,
        peak_lr=params.peak_lr,
        min_lr=params.min_lr,
        lr_decay=params.lr_decay,
    )
    optimizer_step(training, lr, divisor)
    training.loader.prefetch(step + 1)
    return _PendingStep(step, lr, torch.cat([loss.view(1), stats]))


def _fetch_records(training: Training, pending: list[_PendingStep]) -> list[StepRecord]:
    """Records of the pending steps. Raises NonFiniteError at the first step with a metric that is not finite.

    All metrics are copied at once: a copy per step would wait for the GPU each time.
    """
    tokens_per_step = training.params.batch_size * training.params.context_length
    metrics = torch.stack([item.metrics for item in pending]).tolist()
    records = []
    for item, (loss, max_grad, max_grad_clipped, grad_norm) in zip(pending, metrics, strict=True):
        record = StepRecord(
            step=item.step,
            epoch=item.step // training.plan.steps_per_epoch,
            tokens_seen=(item.step + 1) * tokens_per_step,
            lr=item.lr,
            loss=loss,
            max_grad=max_grad,
            max_grad_clipped=max_grad_clipped,
            grad_norm=grad_norm,
        )
        measured = {"loss": loss, "max_grad": max_grad, "max_grad_clipped": max_grad_clipped, "grad_norm": grad_norm}
        require_finite(measured, f"step {item.step}")
        records.append(record)
    return records


def accumulate_gradients(training: Training, inputs: Tensor, targets: Tensor) -> Tensor:
    """Run forward and backward on this process's shard of a batch, in `accumulate` micro-batches.

    inputs, targets: (b, T) int64, on the device. Returns the shard's mean loss, a float32 scalar on the device.
    Gradients become the mean over all processes.
    """
    training.model.train()
    training.optimizer.zero_grad(set_to_none=True)
    if training.params.compile:  # the call imports torch's compiler, which takes seconds
        # A new iteration begins: CUDA graphs, if used, may reuse the memory of the previous gradients.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    num_micro_batches = training.params.accumulate
    micro_batch_size = len(inputs) // num_micro_batches
    losses = []
    for index in range(num_micro_batches):
        rows = slice(index * micro_batch_size, (index + 1) * micro_batch_size)
        is_last = index + 1 == num_micro_batches
        with nullcontext() if is_last else no_sync(training.loss_fn):
            loss = batch_loss(training, inputs[rows], targets[rows]) / num_micro_batches
            torch.autograd.backward(loss)
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def batch_loss(training: Training, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of rows on the device, in train mode, in nats per token: a float32 scalar with its graph."""
    with training.numerics.autocast():
        return training.loss_fn(inputs, targets)


def optimizer_step(training: Training, lr: float, divisor: Tensor | None) -> None:
    """One AdamW step with learning rate lr on gradients divided by divisor (None: unchanged), which clips them."""
    for param_group in training.optimizer.param_groups:
        param_group["lr"] = lr
    # The fused kernel divides each gradient by grad_scale as it reads it; torch's GradScaler uses the same attribute.
    training.optimizer.grad_scale = divisor  # type: ignore[attr-defined]
    training.optimizer.step()


def _evaluation_losses(training: Training, step: int) -> tuple[float, float]:
    """train_loss and val_loss: means over the first eval_iter batches of each split.

    With random_order book, the training rows are shuffled anew for each evaluation, as in the book.
    """
    params = training.params
    num_rows = params.eval_iter * params.batch_size
    order = training.randomness.evaluation_rows(len(training.train_rows.inputs))
    train_loss = _sum_losses_by_shard(training, training.train_rows.take(order[:num_rows])).loss
    val_loss = _sum_losses_by_shard(training, training.val_rows.take(slice(num_rows))).loss
    require_finite({"train_loss": train_loss, "val_loss": val_loss}, f"step {step}")
    return train_loss, val_loss


def _sum_losses_by_shard(training: Training, rows: Batch) -> LossSums:
    """Losses of rows; each process computes its shard."""
    group = training.group
    batch_size = training.params.rows_per_forward
    own = rows.take(group.shard)
    result = sum_losses(training.model, own.inputs, own.targets, batch_size=batch_size, numerics=training.numerics)
    # With FSDP each forward pass is a collective, so all processes need the same number of passes: one whose shard has
    # fewer batches than the largest makes an extra pass and drops its result. -(-a // b) is a / b rounded up.
    largest_shard = -(-len(rows.inputs) // group.size)
    if -(-len(own.inputs) // batch_size) < -(-largest_shard // batch_size):
        sum_losses(training.model, rows.inputs[:1], rows.targets[:1], batch_size=1, numerics=training.numerics)
    loss_sum, num_correct, num_tokens = group.all_reduce_sum(result.loss_sum, result.num_correct, result.num_tokens)
    return LossSums(loss_sum, int(num_correct), int(num_tokens))


def _greedy_sample(training: Training) -> list[int]:
    with training.numerics.autocast():
        continuation = generate(training.model, training.prompt, training.params.max_new_tokens)
        return training.prompt + list(continuation)
