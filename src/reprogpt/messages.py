"""Messages for a person, on standard error."""

import sys


def print_message(text: str) -> None:
    """Print lines on standard error, above the progress bar if there is one: it would share its line with them.

    Does nothing if standard error is closed.
    """
    if sys.stderr is None:
        return
    # Without tqdm there is no bar. It is not imported for this: a served model, whose device is announced by
    # this function, does not need the library.
    tqdm = sys.modules.get("tqdm")
    if tqdm:
        tqdm.tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr)
    sys.stderr.flush()
