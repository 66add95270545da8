"""Paths of the pipeline's data, relative to the repository's root, as dvc.yaml declares them."""

from pathlib import Path

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
