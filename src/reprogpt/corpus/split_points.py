"""Points at which a text can be split so that encoding the parts gives the token ids of the whole.

GPT-2's regular expression first splits a text into pre-tokens: an optional space with letters, digits or other
characters, or whitespace alone. Only whitespace at a pre-token's end makes it depend on what follows. So no pre-token
crosses from

- a character that is not whitespace to whitespace,
- a letter to a digit or sign, or a digit to a letter or sign,
- a sign other than ' to a letter or digit ("'s" is a pre-token),

and both sides are encoded independently of each other. After whitespace there is no split point: "\\n" and "\\n\\n"
before a word are different pre-tokens. Of the last two kinds only ASCII and Chinese and Japanese characters are used,
whose classes no version of Unicode will change.
"""

import re
from collections.abc import Iterable, Iterator

from reprogpt.errors import DataError

MAX_STRETCH = 1 << 20  # characters without a split point; tiktoken needs up to 110 bytes of memory for each

_SIGN = r"!-&(-/:-@\[-`{-~"  # of ASCII, without '
_IDEOGRAPH, _STOP = "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fef", "、。！，：；？"  # noqa: RUF001
_SPLIT_POINT = re.compile(
    r"(?<=\S)(?=[ \t-\r])"
    rf"|(?<=[A-Za-z])(?=[0-9'{_SIGN}])|(?<=[0-9])(?=[A-Za-z'{_SIGN}])|(?<=[{_SIGN}])(?=[A-Za-z0-9])"
    rf"|(?<=[{_IDEOGRAPH}])(?=[{_STOP}])|(?<=[{_STOP}])(?=[{_IDEOGRAPH}])"
)
_NEAR = 100  # characters in which nearly every text has a split point


def split_text_at(pieces: Iterable[str], *, size: int, name: str, max_stretch: int = MAX_STRETCH) -> Iterator[str]:
    """Re-split the text of `pieces` at split points, into parts of about `size` characters.

    size: 1 to max_stretch. name: the text's name in messages.
    Raises DataError if more than max_stretch characters have no split point.
    """
    buffer = ""
    begin = 0  # buffer[:begin] has been yielded
    num_before = 0  # characters before the buffer
    for piece in pieces:
        num_before += begin
        buffer = buffer[begin:] + piece
        begin = 0
        while len(buffer) - begin > size:
            cut = _next_split(buffer, begin, size)
            if not cut:
                _require_short(len(buffer) - begin, num_before + begin, max_stretch, name)
                break
            _require_short(cut - begin, num_before + begin, max_stretch, name)
            yield buffer[begin:cut]
            begin = cut
    if buffer[begin:]:
        yield buffer[begin:]


def _next_split(text: str, begin: int, size: int) -> int:
    """The last split point in the `size` characters after `begin`, else the first one after them; 0 if none."""
    end = begin + size
    for start in (max(begin + 1, end - _NEAR), begin + 1):
        points = [match.start() for match in _SPLIT_POINT.finditer(text, start, end + 1)]
        if points:
            return points[-1]
    after = _SPLIT_POINT.search(text, end)
    return after.start() if after else 0


def _require_short(length: int, num_before: int, max_stretch: int, name: str) -> None:
    if length > max_stretch:
        raise DataError(
            f"{name} can't be encoded in parts: from character {num_before} on, more than {max_stretch} have no point "
            "at which a word certainly ends, such as a letter before a space or a line's end; "
            "put spaces or line breaks into it"
        )
