"""Paths: of the pipeline's data, relative to the repository's root as dvc.yaml declares them; root, state and cache."""

import os
from pathlib import Path

import platformdirs

BUNDLED_TEXT = Path("data/offline/an-error-of-the-press.txt")  # for the default text, without a network
RAW_TEXT = Path("data/corpus/raw.txt")
SOURCE = Path("data/corpus/source.json")
DOCUMENTS = Path("data/corpus/documents.json")

TRAIN_TEXT = Path("data/corpus/train.txt")
VAL_TEXT = Path("data/corpus/val.txt")
PARTS = Path("data/corpus/parts.json")

TRAIN_TOKENS = Path("data/tokens/train.npy")
VAL_TOKENS = Path("data/tokens/val.npy")
TOKEN_COUNTS = Path("data/metrics/tokens.json")

MODEL = Path("data/model")
HISTORY = Path("data/metrics/history.csv")
EVALUATIONS = Path("data/metrics/evaluations.csv")
TRAIN_SUMMARY = Path("data/metrics/train.json")

EVAL_RESULTS = Path("data/metrics/eval.json")
SAMPLES = Path("data/samples.txt")

PLOTS = Path("data/plots")

CHECKPOINT_ARTIFACT = "checkpoint"  # of an MLflow model: the folder with the files of MODEL


def cache_folder() -> Path:
    """The user's download cache, shared by all clones: $REPROGPT_CACHE, else the platform's cache folder.

    Without a home folder that can be written to, as in many containers and on clusters: one in state_dir().
    """
    configured = os.environ.get("REPROGPT_CACHE")
    if configured:
        return Path(configured).expanduser().resolve()
    folder = platformdirs.user_cache_path("reprogpt", appauthor=False)
    return folder if folder.is_absolute() and _can_be_written(folder) else state_dir() / "cache"


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def repository_root() -> Path:
    """The main repository, which holds the MLflow store, also in a queued experiment's copy of the workspace.

    DVC sets DVC_ROOT for every stage that it runs; without DVC it is the current folder.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def state_dir() -> Path:
    """Folder for checkpoints and queued records, in the main repository; git and DVC ignore it."""
    return repository_root() / ".reprogpt"
