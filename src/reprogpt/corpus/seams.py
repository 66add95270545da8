"""Where a text may be cut so that its parts, encoded one by one, give the ids of the whole.

GPT-2's pattern first cuts a text into words, each a possible space and letters, or digits, or other signs, or white
space alone, and what is a word depends on what follows only where white space ends it. So no word ever crosses

- from anything that is not white space to white space,
- from a letter to a digit or sign, or from a digit to a letter or sign,
- from a sign other than ' to a letter or digit ("'s" is a word),

and both sides read the same without each other. After white space is no such place: "\\n" and "\\n\\n" before a word
are other words. Of the last two kinds only those in ASCII and Chinese and Japanese script are taken, whose classes
no version of Unicode will change.
"""

import re
from collections.abc import Iterable, Iterator

from reprogpt.errors import DataError

MAX_STRETCH = 1 << 20  # characters without such a place; tiktoken needs up to 110 bytes of memory for each

_SIGN = r"!-&(-/:-@\[-`{-~"  # of ASCII, without '
_IDEOGRAPH, _STOP = "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fef", "、。！，：；？"  # noqa: RUF001
_SEAM = re.compile(
    r"(?<=\S)(?=[ \t-\r])"
    rf"|(?<=[A-Za-z])(?=[0-9'{_SIGN}])|(?<=[0-9])(?=[A-Za-z'{_SIGN}])|(?<=[{_SIGN}])(?=[A-Za-z0-9])"
    rf"|(?<=[{_IDEOGRAPH}])(?=[{_STOP}])|(?<=[{_STOP}])(?=[{_IDEOGRAPH}])"
)
_NEAR = 1000  # characters in which nearly every text has a seam


def cut_at_seams(pieces: Iterable[str], *, size: int, name: str, max_stretch: int = MAX_STRETCH) -> Iterator[str]:
    """The text of `pieces`, cut anew: at seams, and into about `size` characters where there are enough of them.

    size: 1 to max_stretch. name: what messages call the text.
    Raises DataError where more than max_stretch characters have no seam among them.
    """
    held, num_before = "", 0
    for piece in pieces:
        held += piece
        while len(held) > size and (cut := _seam(held, size)):
            _require_short(cut, num_before, max_stretch, name)
            yield held[:cut]
            held, num_before = held[cut:], num_before + cut
        if len(held) > size:  # and no seam is in it
            _require_short(len(held), num_before, max_stretch, name)
    if held:
        yield held


def _seam(text: str, size: int) -> int:
    """The last seam in the first `size` characters, or else the first one after them; 0 if there is none."""
    for start in (max(0, size - _NEAR), 0):
        seams = [match.start() for match in _SEAM.finditer(text, start, size + 1)]
        if seams:
            return seams[-1]
    after = _SEAM.search(text, size)
    return after.start() if after else 0


def _require_short(length: int, num_before: int, max_stretch: int, name: str) -> None:
    if length > max_stretch:
        raise DataError(
            f"{name} can't be encoded in parts: from character {num_before} on, more than {max_stretch} have no place "
            "among them where words certainly end, such as a letter before a space or a line's end; "
            "put spaces or line breaks into it"
        )
