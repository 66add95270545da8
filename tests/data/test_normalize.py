"""Texts as Python's text mode reads them, whatever the pieces that they come in."""

import io
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reprogpt.data.normalize import (
    END_OF_TEXT,
    MARK,
    Changes,
    count_end_of_text,
    is_normal,
    normalize,
    normalize_text,
)
from tests.data.texts import QUICK

TEXTS = st.lists(st.sampled_from(["\r", "\n", "\r\n", "\ufeff", "a", "ü", "漢", "🙂", " "]), max_size=20).map("".join)


def python_reads(content: bytes) -> str:
    """What open(path, encoding="utf-8-sig") reads, as the book does but for the mark."""
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()


@settings(QUICK, max_examples=500)
@given(TEXTS, st.lists(st.integers(1, 5), min_size=1))
@example("\ufeff\r\n\r", [1])
@example("\r\r\n\n", [2, 1])
@example("\ufeff\ufeffa", [4])
def test_pieces_of_any_size_give_what_python_reads(text: str, sizes: list[int]) -> None:
    content = text.encode()
    pieces: list[bytes] = []
    position = 0
    while position < len(content):
        pieces.append(content[position : position + sizes[len(pieces) % len(sizes)]])
        position += len(pieces[-1])
    changes = Changes()
    assert b"".join(normalize(pieces, changes)).decode() == python_reads(content) == normalize_text(text)
    assert changes.byte_order_marks == text.startswith("\ufeff")
    assert changes.line_ends == text.replace("\r\n", "\r").count("\r")


@settings(QUICK, max_examples=100)
@given(TEXTS)
def test_a_text_is_normal_if_nothing_would_change(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_bytes(text.encode())
    assert is_normal(path) == (normalize_text(text) == text)


def test_a_mark_cut_off_is_kept() -> None:
    for end in (1, 2):
        assert b"".join(normalize([MARK[:end]], Changes())) == MARK[:end]


@pytest.mark.parametrize("before", [0, 1, 5, 12])
def test_end_of_text_is_counted_across_pieces(tmp_path: Path, before: int) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a" * ((1 << 20) - before) + END_OF_TEXT * 3 + b"<|endoftext" + END_OF_TEXT)
    assert count_end_of_text(path) == 4
    path.write_bytes(b"<|endoftext |>")
    assert count_end_of_text(path) == 0
