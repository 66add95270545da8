"""A copy of the working tree, uncommitted edits and all: the code that is here is measured, not the last commit."""

import shutil
import subprocess
from pathlib import Path

from benchmarks.report import ROOT


def copy_workspace(to: Path) -> Path:
    """Copy the working tree into the new folder `to`, a repository of its own with one commit; returns it."""
    copy_files(to)
    who = ["-c", "user.name=benchmarks", "-c", "user.email=benchmarks@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "--all"], [*who, "commit", "--quiet", "--message", "as it is"]):
        subprocess.run(["git", *command], cwd=to, check=True)
    return to


def copy_files(to: Path) -> None:
    """Copy every file that git does not ignore into the folder `to`."""
    question = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(question, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
