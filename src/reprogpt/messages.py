"""Text for a person: messages on standard error, results on standard output."""

import re
import sys
from collections.abc import Iterable

# Control characters, ends of lines, and marks that change the order in which a terminal shows a line.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text on one line, with control characters and the like written as in a Python string: `\\x1b`, `\\n`.

    For what comes from outside, such as the name of a run: it could erase what was printed, or forge a line.
    """
    return _INVISIBLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on standard output, each of them visible()."""
    print("\n".join(map(visible, lines)))


def print_message(text: str) -> None:
    """Print lines on standard error, above the progress bar if there is one: it would share its line with them.

    Each line is visible(). A name from outside that may have several lines has to be made visible() by itself.
    Does nothing if standard error is closed.
    """
    if sys.stderr is None:
        return
    text = "\n".join(map(visible, text.split("\n")))
    # Without tqdm there is no bar. It is not imported for this: a served model, whose device is announced by
    # this function, does not need the library.
    tqdm = sys.modules.get("tqdm")
    if tqdm:
        tqdm.tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr)
    sys.stderr.flush()
