"""DVC stage `split`: raw text -> train and validation text. Logic: reprogpt.corpus.text."""

from pathlib import Path

from reprogpt.corpus.text import read_text, split_text
from reprogpt.errors import run_program
from reprogpt.files import write_text_atomic
from reprogpt.params import load_params
from reprogpt.params.split import SplitParams

RAW = Path("data/corpus/raw.txt")
TRAIN, VAL = Path("data/corpus/train.txt"), Path("data/corpus/val.txt")


def main() -> None:
    params = load_params(SplitParams)
    train, val = split_text(read_text(RAW), params.train_ratio)
    write_text_atomic(TRAIN, train)
    write_text_atomic(VAL, val)


if __name__ == "__main__":
    run_program(main)
