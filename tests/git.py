"""git as nobody in particular, for the repositories that tests make."""

import subprocess
from pathlib import Path


def git(*arguments: str, folder: Path | None = None) -> str:
    """What a command that must succeed prints, without space at its ends. folder: the current one for None."""
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t.invalid", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
