"""Metrics of one optimizer step: training yields them; history.csv, MLflow and the figures show them."""

from dataclasses import dataclass

STEP_METRICS = ("loss", "lr", "max_grad", "max_grad_clipped", "grad_norm")  # of every step
EVAL_METRICS = ("train_loss", "val_loss")  # of evaluation steps


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step; the fields, except sample, are the columns of history.csv.

    step, epoch: 0-based. tokens_seen: input tokens up to and including this step.
    lr: learning rate. loss: of the step's batch, in nats per token.
    max_grad: largest signed entry of all gradients before clipping (the book's find_highest_gradient);
    max_grad_clipped: the same after clipping. grad_norm: L2 norm of all gradients before clipping.
    train_loss, val_loss: nats per token; None except on evaluation steps.
    sample: token ids of the prompt and its greedy continuation; None except on the last step of a sampled epoch.
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
