"""DVC stage `tokenize`: text -> token ids. Logic: reprogpt.corpus.tokenizing."""

from pathlib import Path

from reprogpt.corpus.documents import read_ends
from reprogpt.corpus.tokenizing import tokenize_file
from reprogpt.corpus.tokens import load_encoding
from reprogpt.errors import run_program
from reprogpt.files import write_json_atomic
from reprogpt.params import load_params
from reprogpt.params.tokenize import TokenizeParams
from reprogpt.record.bar import byte_bar

TEXTS = {"train": Path("data/corpus/train.txt"), "val": Path("data/corpus/val.txt")}
PARTS = Path("data/corpus/parts.json")
TOKENS = {"train": Path("data/tokens/train.npy"), "val": Path("data/tokens/val.npy")}
COUNTS = Path("data/metrics/tokens.json")


def main() -> None:
    encoding = load_encoding(load_params(TokenizeParams).encoding)
    counts: dict[str, int] = {}
    for split, text in TEXTS.items():
        ends = read_ends(PARTS, f"{split}_ends", text)
        with byte_bar(f"tokenize {text.name}", text.stat().st_size) as advance:
            found = tokenize_file(encoding, text, TOKENS[split], ends=ends, advance=advance)
        counts |= {f"{split}_characters": found.characters, f"{split}_tokens": found.tokens}
    write_json_atomic(COUNTS, counts)
    print(f"tokenize: {counts['train_tokens']} training and {counts['val_tokens']} validation tokens")


if __name__ == "__main__":
    run_program(main)
