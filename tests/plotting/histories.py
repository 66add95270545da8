"""Training histories that a reader can check in the head, as the train stage writes them."""

from typing import Any

import numpy as np
import pandas as pd

FIGURES = ("learning_rate", "losses", "gradients")
KINDS = ("png", "pdf")
FILES = {f"{name}.{kind}" for name in FIGURES for kind in KINDS}


def facts(*, warmup_steps: int, steps_per_epoch: int = 5) -> dict[str, Any]:
    """What train.json holds for the figures, of a cosine schedule clipped to norm 1 after warmup."""
    lists = {
        "lr_decay": ["cosine"],
        "decay_start": [warmup_steps],
        "first_clipped_step": [warmup_steps],
        "keep": ["last"],
    }
    return {"warmup_steps": warmup_steps, "steps_per_epoch": steps_per_epoch, "max_norm": 1.0, **lists}


def training(num_steps: int, *, warmup_steps: int, eval_freq: int = 5, falling: bool = True) -> pd.DataFrame:
    """A history as train writes it: 512 tokens and a loss of 9, 9/2, 9/3 … per step; val_loss is lowest at step 10."""
    step = np.arange(num_steps)
    after = np.maximum(step - warmup_steps, 0) / max(1, num_steps - warmup_steps)
    rise = np.minimum(1, (step + 1) / (warmup_steps + 1))
    norm = 2.0 - (step % 2) * 1.5  # 2, 0.5, 2, 0.5 …
    scale = np.where(step >= warmup_steps, np.minimum(1, 1 / norm), 1)
    evaluated = step % eval_freq == 0 if eval_freq else np.zeros(num_steps, dtype=bool)
    return pd.DataFrame(
        {
            "step": step,
            "epoch": step // 5,
            "tokens_seen": 512 * (step + 1),
            "lr": 0.0005 * rise * (np.cos(after) if falling else 1),
            "loss": 9 / (step + 1),
            "max_grad": 0.02 * norm,
            "max_grad_clipped": 0.02 * norm * scale,
            "grad_norm": norm,
            "train_loss": np.where(evaluated, 9 / (step + 1), np.nan),
            "val_loss": np.where(evaluated, 6.25 + abs(step - 10) / 10, np.nan),
        }
    )
