"""Finds boundaries at which a text can be split so that encoding the parts gives the token ids of the whole.

GPT-2's regular expression first splits a text into pre-tokens: an optional space with letters, digits or other
characters, or whitespace alone. A pre-token depends on what follows only if it ends in whitespace. So no pre-token
crosses from

- a character that is not whitespace to whitespace,
- whitespace to the last whitespace before another character: "\\n\\n  word" is "\\n\\n ", then " word",
- a letter to a digit or sign, or a digit to a letter or sign,
- a sign other than ' to a letter or digit ("'s" is a pre-token),

and both sides are encoded independently of each other. There is no other boundary after whitespace: "\\n" and
"\\n\\n" before a word are different pre-tokens. The last two kinds are limited to ASCII, Chinese and Japanese
characters, whose classes no version of Unicode will change. tiktoken fails on a million whitespace characters before
another character; the second kind splits these.
"""

import re
from collections.abc import Iterable, Iterator

_SIGN = r"!-&(-/:-@\[-`{-~"  # of ASCII, without '
_IDEOGRAPH, _STOP = "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fef", "、。！，：；？"  # noqa: RUF001
_SPACE = r" \t-\r\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's White_Space
_BOUNDARY = re.compile(
    rf"(?<=\S)(?=[ \t-\r])|(?=[{_SPACE}]\S)"
    rf"|(?<=[A-Za-z])(?=[0-9'{_SIGN}])|(?<=[0-9])(?=[A-Za-z'{_SIGN}])|(?<=[{_SIGN}])(?=[A-Za-z0-9])"
    rf"|(?<=[{_IDEOGRAPH}])(?=[{_STOP}])|(?<=[{_STOP}])(?=[{_IDEOGRAPH}])"
)
_NEAR = 100  # characters; nearly every stretch of this length has a boundary
_SEEN = 2  # characters around a boundary that identify it


def split_at_token_boundaries(pieces: Iterable[str], *, size: int) -> Iterator[str]:
    """Re-split the text of `pieces` at token boundaries, into parts of about `size` characters, size >= 1.

    A stretch without a boundary, such as DNA or Chinese without line ends, becomes one part, however long.
    """
    buffer = ""
    begin = 0  # buffer[:begin] has been yielded
    searched = 0  # buffer[begin + size : searched] has no boundary
    for piece in pieces:
        buffer = buffer[begin:] + piece if begin else buffer + piece
        searched -= begin
        begin = 0
        while len(buffer) - begin > size:
            cut = _next_boundary(buffer, begin, size, searched)
            if not cut:
                searched = len(buffer) - _SEEN
                break
            yield buffer[begin:cut]
            begin = cut
    if buffer[begin:]:
        yield buffer[begin:]


def _next_boundary(text: str, begin: int, size: int, searched: int) -> int:
    """The last boundary in the `size` characters after `begin`, otherwise the first one after those; 0 if none."""
    end = begin + size
    if searched <= end:
        for start in (max(begin + 1, end - _NEAR), begin + 1):
            points = [match.start() for match in _BOUNDARY.finditer(text, start, end + 1)]
            if points:
                return points[-1]
    after = _BOUNDARY.search(text, max(end, searched))
    return after.start() if after else 0
