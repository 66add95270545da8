"""The description of a run: exact texts, of a run with all facts and of one with hardly any."""

import dataclasses
from typing import Any

from reprogpt.tracking.log.description import describe_evaluation, describe_training, repeat_commands

from reprogpt.tracking.store.tracked_run import TrackedRun

ID, COMMIT, DIGEST = "ab" * 16, "c0" * 20, "d1" * 32
TRAINING = TrackedRun(
    id=ID,
    name="repro-12345678",
    status="FINISHED",
    params={
        "n_epochs": "15",
        "initial_lr": "1e-05",
        "peak_lr": "0.0005",
        "min_lr": "1e-05",
        "lr_decay": "cosine",
        "n_layers": "12",
        "n_heads": "12",
        "emb_dim": "768",
        "context_length": "256",
    },
    tags={
        "corpus.url": "https://example.invalid/texts/the_verdict.txt",
        "corpus.sha256": DIGEST,
        "tokens.training": "4612",
        "tokens.validation": "534",
        "total_steps": "135",
        "warmup_steps": "27",
        "num_parameters": "162419712",
        "commit": COMMIT,
        "dirty": "false",
    },
    metrics={
        "final_train_loss": 0.20471,
        "final_val_loss": 6.4709,
        "best_val_loss": 6.1375,
        "val_perplexity": 646.1,
        "loss": 0.2,
    },
)
BY_LINEAGE = f"""
To restore it (the first command checks the repository as it is now):

```
python -m reprogpt lineage {ID}
```
"""


def changed(run: Any = TRAINING, **tags: str) -> TrackedRun:
    return dataclasses.replace(run, tags={**run.tags, **tags})


def test_a_training_is_described_from_corpus_to_the_commands_that_restore_it() -> None:
    assert describe_training(TRAINING) == (
        f"- **Corpus** `the_verdict.txt`, sha256 `{DIGEST}`, 4,612 training tokens, 534 validation tokens\n"
        "- **Schedule** 135 steps, 27 of them warmup, n_epochs 15, initial_lr 1e-05, peak_lr 0.0005, "
        "cosine decay to min_lr 1e-05\n"
        "- **Model** 162,419,712 parameters, n_layers 12, n_heads 12, emb_dim 768, context_length 256\n"
        "- **Result** final_train_loss 0.2047, final_val_loss 6.471, best_val_loss 6.138, val_perplexity 646.1\n"
        f"- **From** commit `{COMMIT}`\n"
        f"{BY_LINEAGE}"
        f"""
```
git checkout {COMMIT}
mlflow artifacts download -r {ID} -a params.yaml -d .
dvc repro  # trains again, unless DVC's cache has the result
```
"""
    )


def test_an_experiment_is_restored_by_its_name() -> None:
    text = describe_training(changed(**{"dvc.experiment": "warm_1"}))
    assert f"\n- **From** DVC experiment `warm_1`, commit `{COMMIT}`\n" in text
    assert text.endswith(BY_LINEAGE + "\n```\ndvc exp apply warm_1\ndvc repro\n```\n")


def test_edited_code_is_described_and_restored_by_its_patch() -> None:
    run = changed(dirty="true")
    assert f"- **From** commit `{COMMIT}`, with the edits of its artifact `uncommitted.patch`\n" in describe_training(
        run
    )
    assert repeat_commands(run)[:3] == [
        f"git checkout {COMMIT}",
        f"mlflow artifacts download -r {ID} -a uncommitted.patch -d .",
        "git apply uncommitted.patch",
    ]


def test_a_constant_rate_and_the_initial_weights_are_described() -> None:
    run = dataclasses.replace(TRAINING, params={**TRAINING.params, "lr_decay": "none"})
    text = describe_training(changed(run, started_from_sha256="e2"))
    assert "peak_lr 0.0005, constant after warmup\n" in text
    assert "context_length 256, initialized from weights with sha256 `e2`\n" in text


def test_what_is_not_on_record_is_left_out() -> None:
    """A run that an earlier version made, outside of git."""
    assert describe_training(TrackedRun(id=ID, name="n", status="RUNNING")) == BY_LINEAGE


def test_an_evaluation_is_described_by_what_it_changed_and_its_training() -> None:
    child = TrackedRun(
        id="ff" * 16,
        name="repro-12345678-evaluate",
        status="FINISHED",
        params={"top_k": "9", "temperature": "1.0"},
        tags={"commit": COMMIT},
        metrics={"final_val_loss": 6.4709},
    )
    assert describe_evaluation(child, TRAINING) == (
        f"- **Evaluation** of the training `repro-12345678`, run `{ID}`\n"
        "- **With** temperature `1.0`, top_k `9`\n"
        "- **Result** final_val_loss 6.471\n"
        f"- **From** commit `{COMMIT}`\n"
        f"{BY_LINEAGE}"
    )


def test_a_name_can_not_end_its_code_span() -> None:
    assert "`a'b`" in describe_training(changed(**{"dvc.experiment": "a`b"}))
