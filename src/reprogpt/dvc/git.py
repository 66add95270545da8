"""Questions to git about the repository that the current folder is in."""

import subprocess


def git_bytes(*arguments: str) -> bytes | None:
    """What a git command prints; None if it fails, as where there is no git, no repository or no such thing."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def git(*arguments: str) -> str | None:
    """The same as text, without space at its ends."""
    printed = git_bytes(*arguments)
    return None if printed is None else printed.decode("utf-8", "replace").strip()
