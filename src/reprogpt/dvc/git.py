"""Questions to git about the repository that the current folder is in."""

import subprocess


def git_bytes(*arguments: str) -> bytes | None:
    """What a git command prints; None if it fails, as where there is no git, no repository or no such thing."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def git_error(*arguments: str) -> str | None:
    """Why a git command fails, in git's words, which may name the remedy on further lines; None if it succeeds."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError as error:
        return f"git can't be started: {error.strerror}"
    return done.stderr.decode("utf-8", "replace").strip() if done.returncode else None


def git(*arguments: str) -> str | None:
    """The same as text, without space at its ends."""
    printed = git_bytes(*arguments)
    return None if printed is None else printed.decode("utf-8", "replace").strip()
