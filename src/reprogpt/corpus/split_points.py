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
_NEAR = 100  # characters in which nearly every text has a seam


def split_text_at(pieces: Iterable[str], *, size: int, name: str, max_stretch: int = MAX_STRETCH) -> Iterator[str]:
    """The text of `pieces`, cut anew: at seams, and into about `size` characters where there are enough of them.

    size: 1 to max_stretch. name: what messages call the text.
    Raises DataError where more than max_stretch characters have no seam among them.
    """
    held, begin, num_before = "", 0, 0  # held[:begin] is done with; num_before characters came before held
    for piece in pieces:
        held, num_before, begin = held[begin:] + piece, num_before + begin, 0
        while len(held) - begin > size and (cut := _seam(held, begin, size)):
            _require_short(cut - begin, num_before + begin, max_stretch, name)
            yield held[begin:cut]
            begin = cut
        if len(held) - begin > size:  # and no seam is in it
            _require_short(len(held) - begin, num_before + begin, max_stretch, name)
    if held[begin:]:
        yield held[begin:]


def _seam(text: str, begin: int, size: int) -> int:
    """The last seam in the `size` characters after `begin`, or else the first one after them; 0 if there is none."""
    end = begin + size
    for start in (max(begin + 1, end - _NEAR), begin + 1):
        seams = [match.start() for match in _SEAM.finditer(text, start, end + 1)]
        if seams:
            return seams[-1]
    after = _SEAM.search(text, end)
    return after.start() if after else 0


def _require_short(length: int, num_before: int, max_stretch: int, name: str) -> None:
    if length > max_stretch:
        raise DataError(
            f"{name} can't be encoded in parts: from character {num_before} on, more than {max_stretch} have no place "
            "among them where words certainly end, such as a letter before a space or a line's end; "
            "put spaces or line breaks into it"
        )
