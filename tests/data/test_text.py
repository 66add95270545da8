"""Reading and checking a text."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reprogpt.data import text as module
from reprogpt.data.charset import why_not_utf8
from reprogpt.data.text import count_characters, read_pieces
from reprogpt.errors import DataError

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
                message = f"^pieces ends inside a character, at byte {error.start}:"
            if why_not_utf8(content[:piece_bytes]):
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
