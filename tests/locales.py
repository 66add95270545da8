"""Locales whose encoding is not UTF-8, made for a test: few machines have any."""

import shutil
import subprocess
from pathlib import Path


def locale_env(folder: Path, name: str, charmap: str) -> dict[str, str]:
    """Variables for a process in this locale, as ("ja_JP", "EUC-JP"), which is made in `folder`.

    Where the machine can't make it, they set the encoding of Python's standard streams only.
    """
    path = folder / f"{name}.{charmap}"
    if not path.exists() and shutil.which("localedef"):
        command = ["localedef", "--force", "-f", charmap, "-i", name, str(path)]
        subprocess.run(command, capture_output=True, check=False)  # exit code 1: with warnings
    if not path.exists():
        return {"PYTHONIOENCODING": charmap}
    return {"LOCPATH": str(folder), "LC_ALL": path.name, "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
