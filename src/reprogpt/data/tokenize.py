"""Encodes a text of any size on all cores: the same token ids as encoding each document as a whole."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import tiktoken

from reprogpt.data.document_offsets import document_spans
from reprogpt.data.text import read_pieces
from reprogpt.data.token_boundaries import split_at_token_boundaries
from reprogpt.data.tokens import encode, token_type, write_tokens

PART_CHARACTERS = 1 << 18  # encoded at a time; large enough to make the overhead small

Part = str | None  # None: one document ends here and another begins


@dataclass(frozen=True)
class Counts:
    """Characters of a text, and tokens of its token file, including the end-of-text tokens between documents."""

    characters: int
    tokens: int


def num_cpus() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tokenize_file(
    encoding: tiktoken.Encoding,
    text: Path,
    tokens: Path,
    *,
    offsets: Sequence[int] = (),
    advance: Callable[[int], object] = lambda num_bytes: None,
    workers: int | None = None,
    part_characters: int = PART_CHARACTERS,
) -> Counts:
    """Encode the file `text` into the file `tokens`, with an end-of-text token between documents.

    offsets: byte offsets at which one document ends and the next begins. advance: called with the number of bytes of
    each piece read. workers: threads, one per core if None; tiktoken releases Python's lock while it encodes.
    Memory does not grow with the text: 10 MB per thread, about 10 bytes for each of the (3 * workers + 1) *
    part_characters characters in memory, and up to 150 for each character of a longer stretch without a boundary.
    Raises DataError if the text is not UTF-8.
    """
    num_characters = 0

    def parts() -> Iterator[Part]:
        nonlocal num_characters
        for start, end in document_spans(offsets):
            if start:
                yield None
            pieces = read_pieces(text, start, end, name=str(text), advance=advance)
            for part in split_at_token_boundaries(pieces, size=part_characters):
                num_characters += len(part)
                yield part

    ids = encode_in_order(encoding, _batches(parts(), part_characters), workers or num_cpus())
    num_tokens = write_tokens(tokens, ids, dtype=token_type(encoding.n_vocab))
    return Counts(num_characters, num_tokens)


def encode_in_order(
    encoding: tiktoken.Encoding, batches: Iterable[Sequence[Part]], workers: int
) -> Iterator[np.ndarray]:
    """The ids of each batch, in order, encoded by `workers` threads. At most 2 * workers batches wait."""
    batches = iter(batches)
    first = list(islice(batches, 2))
    if len(first) < 2:  # not worth a thread
        yield from (_encode_batch(encoding, batch) for batch in first)
        return
    # Each thread has its own encoding, 10 MB. If threads share one, only the first has the working memory of the
    # regular expressions to itself, and the others take a sixth longer.
    own = threading.local()

    def begin() -> None:
        own.encoding = _copy(encoding)

    with ThreadPoolExecutor(workers, initializer=begin) as pool:
        waiting: deque[Future[np.ndarray]] = deque()
        for batch in chain(first, batches):
            waiting.append(pool.submit(lambda batch: _encode_batch(own.encoding, batch), batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _copy(encoding: tiktoken.Encoding) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        encoding.name,
        pat_str=encoding._pat_str,
        mergeable_ranks=encoding._mergeable_ranks,
        special_tokens=encoding._special_tokens,
    )


def _encode_batch(encoding: tiktoken.Encoding, batch: Sequence[Part]) -> np.ndarray:
    end = np.array([encoding.eot_token], dtype=token_type(encoding.n_vocab))
    ids = [end if part is None else encode(encoding, part) for part in batch]
    return ids[0] if len(ids) == 1 else np.concatenate(ids)


def _batches(parts: Iterable[Part], size: int) -> Iterator[list[Part]]:
    """Group parts into batches of about `size` characters: a short document alone is not worth a thread's turn."""
    batch: list[Part] = []
    num_characters = 0
    for part in parts:
        batch.append(part)
        num_characters += len(part or "")
        if num_characters >= size // 2:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
