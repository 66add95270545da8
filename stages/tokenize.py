"""DVC stage `tokenize`: text -> token ids. Logic: reprogpt.corpus.tokens."""

from pathlib import Path

from reprogpt.corpus.tokens import encode, load_encoding, write_tokens
from reprogpt.errors import run_program
from reprogpt.files import write_json_atomic
from reprogpt.params import load_params
from reprogpt.params.tokenize import TokenizeParams

TEXTS = {"train": Path("data/corpus/train.txt"), "val": Path("data/corpus/val.txt")}
TOKENS = {"train": Path("data/tokens/train.npy"), "val": Path("data/tokens/val.npy")}
COUNTS = Path("data/metrics/tokens.json")


def main() -> None:
    encoding = load_encoding(load_params(TokenizeParams).encoding)
    counts: dict[str, int] = {}
    for split, path in TEXTS.items():
        text = path.read_bytes().decode("utf-8")
        ids = encode(encoding, text)
        write_tokens(TOKENS[split], ids)
        counts |= {f"{split}_characters": len(text), f"{split}_tokens": len(ids)}
    write_json_atomic(COUNTS, counts)
    print(f"tokenize: {counts['train_tokens']} training and {counts['val_tokens']} validation tokens")


if __name__ == "__main__":
    run_program(main)
