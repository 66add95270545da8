"""DVC stage `tokenize`: text -> token ids. Logic: reprogpt.data.tokenize."""

from reprogpt.data.document_offsets import read_offsets
from reprogpt.data.tokenize import tokenize_file
from reprogpt.data.tokens import load_encoding
from reprogpt.files import write_json_atomic
from reprogpt.params.loader import load_params
from reprogpt.params.tokenize import TokenizeParams
from reprogpt.paths import PARTS, TOKEN_COUNTS, TRAIN_TEXT, TRAIN_TOKENS, VAL_TEXT, VAL_TOKENS
from reprogpt.progress import byte_bar
from stages import run_stage

SPLITS = {"train": (TRAIN_TEXT, TRAIN_TOKENS), "val": (VAL_TEXT, VAL_TOKENS)}


def main() -> None:
    encoding = load_encoding(load_params(TokenizeParams).encoding)
    counts: dict[str, int] = {}
    for split, (text, tokens) in SPLITS.items():
        offsets = read_offsets(PARTS, f"{split}_ends", text)
        with byte_bar(f"tokenize {text.name}", text.stat().st_size) as advance:
            count = tokenize_file(encoding, text, tokens, offsets=offsets, advance=advance)
        counts[f"{split}_characters"] = count.characters
        counts[f"{split}_tokens"] = count.tokens
    write_json_atomic(TOKEN_COUNTS, counts)
    print(f"tokenize: {counts['train_tokens']} training and {counts['val_tokens']} validation tokens")


if __name__ == "__main__":
    run_stage(main)
