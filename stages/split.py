"""DVC stage `split`: raw text -> train and validation text. Logic: reprogpt.data.split."""

from reprogpt.data.document_offsets import read_offsets, split_offsets
from reprogpt.data.split import split_file
from reprogpt.files import write_json_atomic
from reprogpt.params.loader import load_params
from reprogpt.params.split import SplitParams
from reprogpt.paths import DOCUMENTS, PARTS, RAW_TEXT, TRAIN_TEXT, VAL_TEXT
from stages import run_stage


def main() -> None:
    params = load_params(SplitParams)
    cut = split_file(RAW_TEXT, TRAIN_TEXT, VAL_TEXT, train_ratio=params.train_ratio)
    train_ends, val_ends = split_offsets(read_offsets(DOCUMENTS, "ends", RAW_TEXT), cut)
    write_json_atomic(PARTS, {"train_ends": train_ends, "val_ends": val_ends})


if __name__ == "__main__":
    run_stage(main)
