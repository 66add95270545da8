"""Reading, checking and splitting a text."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reprogpt.corpus import text as module
from reprogpt.corpus.foreign_text import what_else
from reprogpt.corpus.text import count_characters, read_pieces, split_file, split_text
from reprogpt.errors import DataError


@pytest.mark.parametrize(
    ("train_ratio", "train", "val"), [(0.5, "ab", "cd"), (0.74, "ab", "cd"), (0.75, "abc", "d"), (0.25, "a", "bcd")]
)
def test_text_is_split_at_the_integer_part_of_ratio_times_characters(train_ratio: float, train: str, val: str) -> None:
    assert split_text("abcd", train_ratio) == (train, val)


def test_the_split_counts_characters_not_bytes() -> None:
    assert split_text("“”€\r", 0.5) == ("“”", "€\r")


@pytest.mark.parametrize(("text", "train_ratio"), [("abcd", 0.2), ("a", 0.9), ("", 0.5), ("abcd", 1.0)])
def test_empty_part_is_refused_with_both_lengths(text: str, train_ratio: float) -> None:
    cut = int(train_ratio * len(text))
    message = f"train_ratio={train_ratio} cuts {len(text)} characters into {cut} and {len(text) - cut}"
    with pytest.raises(DataError, match=message):
        split_text(text, train_ratio)


CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.tuples(st.text("a\r\n“é漢🙂", max_size=20), st.sampled_from([b"", b"\xff", b"\xe6\xbc", b"\xf0\x9f\x99"])).map(
        lambda pair: pair[0].encode() + pair[1]
    ),
)


@settings(deadline=None, database=None, derandomize=True, max_examples=60)
@given(CONTENTS, st.integers(1, 9))
@example("aé漢🙂".encode() + b"\xff", 2)
def test_reading_in_pieces_gives_the_whole_text(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, piece_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes(content)
    advanced: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", piece_bytes)
        try:
            whole = content.decode()
        except UnicodeDecodeError as error:
            message = f"^pieces is not UTF-8 text: byte 0x{content[error.start]:02x} at offset {error.start};"
            if error.reason == "unexpected end of data":
                message = f"^pieces ends within a character, at byte {error.start}:"
            if what_else(content[:piece_bytes]):
                message = "^pieces is (a|UTF-16) "
            with pytest.raises(DataError, match=message):
                list(read_pieces(path, name="pieces"))
            return
        assert "".join(read_pieces(path, advance=advanced.append)) == whole
        assert sum(advanced) == len(content)
        if whole and not whole.isspace():
            assert count_characters(path) == len(whole)
        else:
            with pytest.raises(DataError, match=rf"is empty: {len(content)} bytes"):
                count_characters(path)


@settings(deadline=None, database=None, derandomize=True, max_examples=60)
@given(st.text("a\r\n“é漢🙂", min_size=2, max_size=30).filter(str.strip), st.floats(0.01, 0.99), st.integers(1, 9))
def test_a_file_is_split_as_a_text_in_memory_is(
    tmp_path_factory: pytest.TempPathFactory, text: str, train_ratio: float, piece_bytes: int
) -> None:
    raw, train, val = (tmp_path_factory.getbasetemp() / f"{name}.txt" for name in ("raw", "train", "val"))
    raw.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", piece_bytes)
        if not int(train_ratio * len(text)) > 0:
            with pytest.raises(DataError, match="neither part may be empty"):
                split_file(raw, train, val, train_ratio=train_ratio)
            return
        cut = split_file(raw, train, val, train_ratio=train_ratio)
    assert (train.read_bytes().decode(), val.read_bytes().decode()) == split_text(text, train_ratio)
    assert train.stat().st_size == cut
