"""Python's UTF-8 mode, also under a locale in another encoding.

Names of files are bytes, and URIs quote them as UTF-8. Under another locale Python, and MLflow with it, would look for
a file: URI's path under another name.
"""

import os
import sys


def restart_in_utf8_mode() -> None:
    """Start this program again in UTF-8 mode, unless it is in it; it prints in the terminal's encoding all the same.

    Returns only if there is nothing to do. The process keeps its id.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.platform == "win32":
        return
    terminal = sys.stdout.encoding if sys.stdout else "utf-8"
    # As text, not as bytes: the terminal's encoding of an argument is another.
    arguments = [argument.encode("utf-8", "surrogateescape") for argument in sys.orig_argv[1:]]
    environment = os.environ | {"PYTHONIOENCODING": f"{terminal}:replace"}
    os.execve(sys.executable, [os.fsencode(sys.executable), b"-X", b"utf8", *arguments], environment)  # noqa: S606
