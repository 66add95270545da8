"""DVC stage `split`: raw text -> train and validation text. Logic: reprogpt.corpus.text."""

from pathlib import Path

from reprogpt.corpus.documents import cut_ends, read_ends
from reprogpt.corpus.text import split_file
from reprogpt.errors import run_program
from reprogpt.files import write_json_atomic
from reprogpt.params import load_params
from reprogpt.params.split import SplitParams

RAW, DOCUMENTS = Path("data/corpus/raw.txt"), Path("data/corpus/documents.json")
TRAIN, VAL = Path("data/corpus/train.txt"), Path("data/corpus/val.txt")
PARTS = Path("data/corpus/parts.json")


def main() -> None:
    params = load_params(SplitParams)
    cut = split_file(RAW, TRAIN, VAL, train_ratio=params.train_ratio)
    train_ends, val_ends = cut_ends(read_ends(DOCUMENTS, "ends", RAW), cut)
    write_json_atomic(PARTS, {"train_ends": train_ends, "val_ends": val_ends})


if __name__ == "__main__":
    run_program(main)
