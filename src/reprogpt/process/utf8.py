"""Run in Python's UTF-8 mode under locales with another encoding.

File names are bytes, and URIs quote them as UTF-8. Under another locale Python, and MLflow with it, would decode the
path of a file: URI to a different name.
"""

import os
import sys


def restart_in_utf8_mode() -> None:
    """Restart this program in UTF-8 mode, with the same process id; returns only if it runs in UTF-8 mode already.

    Output keeps the terminal's encoding.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.platform == "win32":
        return
    terminal = sys.stdout.encoding if sys.stdout else "utf-8"
    # sys.orig_argv was decoded with the terminal's encoding; the restarted program decodes UTF-8.
    arguments = [argument.encode("utf-8", "surrogateescape") for argument in sys.orig_argv[1:]]
    environment = os.environ | {"PYTHONIOENCODING": f"{terminal}:replace"}
    os.execve(sys.executable, [os.fsencode(sys.executable), b"-X", b"utf8", *arguments], environment)  # noqa: S606
