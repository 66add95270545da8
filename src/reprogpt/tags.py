"""Names of the MLflow tags and metrics that code reads or writes, each written once.

Metrics of a step are in step_record.py, those of an evaluation in evaluation/final_metrics.py, and the tags that the
bits of a result depend on in tracking/log/environment.py.
"""

from pathlib import Path

# Which training a run is of.
RUN_KEY = "run_key"
TRAINING_ID = "training_id"
REBUILT_FROM = "rebuilt_from"  # the file that the points of a rebuilt run come from
EVALUATION_ID = "evaluation"  # of a child run: digest of its parameters and origin
ERROR = "error"  # why a run FAILED
NOT_RECORDED = "not_recorded"  # what a run lacks since a person gave up its records

# What it was made from.
COMMIT = "commit"
DIRTY = "dirty"  # "true" or "false"
TRAIN_CODE = "train_code"  # 32 hex digits that identify the code of the training
COMMAND = "command"
EXPERIMENT_NAME = "dvc.experiment"
BASELINE_COMMIT = "dvc.baseline"  # that the DVC experiment was made from
CORPUS_URL = "corpus.url"
CORPUS_PATH = "corpus.path"
CORPUS_SHA256 = "corpus.sha256"
INITIAL_WEIGHTS_SHA256 = "started_from_sha256"
STEPS_PER_EPOCH = "steps_per_epoch"
TOTAL_STEPS = "total_steps"
WARMUP_STEPS = "warmup_steps"

# What it made.
WEIGHTS_SHA256 = "weights.sha256"
WEIGHTS_STEP = "weights.step"  # 0-based step after which the training had them

# Of an MLflow experiment: the name that it had when we first used it, by which it is found once it is renamed.
ORIGINAL_NAME = "reprogpt.experiment"

# MLflow's own.
PARENT_RUN_ID = "mlflow.parentRunId"  # of an evaluation with other parameters than the training's run has
DESCRIPTION = "mlflow.note.content"
USER = "mlflow.user"
SOURCE_NAME = "mlflow.source.name"
SOURCE_TYPE = "mlflow.source.type"
SOURCE_COMMIT = "mlflow.source.git.commit"
DATASET_CONTEXT = "mlflow.data.context"

# Metrics besides those of a step and of an evaluation.
BEST_VAL_LOSS = "best_val_loss"
TOKENS_SEEN = "tokens_seen"
TOKENS_PER_SECOND = "tokens_per_second"
SYSTEM_PREFIX = "system/"  # MLflow shows metrics with this prefix on the page "System metrics"


def md5_tag(path: Path | str) -> str:
    """The tag with DVC's MD5 of a dep or an out."""
    return f"dvc.{path}.md5"


def token_count_tag(context: str) -> str:
    """The tag with the number of tokens in a split. context: "training" or "validation"."""
    return f"tokens.{context}"
