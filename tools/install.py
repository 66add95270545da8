"""Makes the environment .venv: the pinned packages, and the code of this folder. `make` runs it before all else.

It needs Python's standard library only, and does nothing where all is in place. An environment that was left half
made, or made for another folder, is made again: its programs hold that folder's path. One process at a time does it.
"""

from __future__ import annotations  # an older Python must come as far as its refusal

import argparse
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(".venv")
LOCK = Path(".venv.lock")
PYTHON = VENV / "bin" / "python"
PINS = {"installed": Path("requirements.lock"), "installed-dev": Path("requirements-dev.lock")}
# A path relative to the folder that holds it: an absolute one with letters that are not ASCII stops Python at its
# start under some locales, and a copy of the folder would run the code of the original.
PTH, SOURCES = "reprogpt.pth", "../../../../src\n"
PROGRAM = '#!/bin/sh\nexec "$(dirname "$0")/python" -m reprogpt "$@"\n'


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/install.py", description=__doc__)
    parser.add_argument("--dev", action="store_true", help="the developers' tools, too")
    is_dev = parser.parse_args().dev
    if sys.version_info < (3, 11):  # noqa: UP036 - it may be
        version = sys.version.split()[0]
        sys.exit(f"reprogpt needs Python 3.11 or newer, this is {version}; try: make PYTHON=python3.12")
    os.chdir(ROOT)
    with one_at_a_time():
        make_venv()
        for mark in list(PINS)[: 2 if is_dev else 1]:
            install(mark)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold a lock for this folder while the block runs; the end of a process releases it, however it ends."""
    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another process that makes .venv", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_venv() -> None:
    """Make .venv, unless it has a working pip and was made for this folder."""
    is_foreign = was_made_elsewhere()
    if has_pip() and not is_foreign:
        return
    if is_foreign:
        print(f"{VENV} was made for another folder: it is made again", flush=True)
    elif VENV.exists():
        print(f"{VENV} has no working pip: it is made again", flush=True)
    if VENV.is_symlink():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)
    run([base_python(), "-m", "venv", str(VENV)])


def has_pip() -> bool:
    """Whether .venv can install packages: not if its making was interrupted, or its Python is gone."""
    if not PYTHON.exists():
        return False
    return subprocess.run([str(PYTHON), "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def was_made_elsewhere() -> bool:
    """Whether .venv says that it was made at another path: the folder was renamed or copied since."""
    try:
        lines = os.fsdecode((VENV / "pyvenv.cfg").read_bytes()).splitlines()
    except OSError:
        return False
    paths = [Path(line.partition(" -m venv ")[2]) for line in lines if line.startswith("command = ")]
    return any(not path.exists() or not path.samefile(VENV) for path in paths)


def base_python() -> str:
    """The Python that runs this, or the one that its virtual environment was made with: that may be .venv itself."""
    if sys.prefix == sys.base_prefix:
        return sys.executable
    return str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")


def install(mark: str) -> None:
    """Install what a lock file pins, and our code, unless the mark says that this was done."""
    pins = PINS[mark]
    digest = hashlib.sha256(pins.read_bytes() + SOURCES.encode() + PROGRAM.encode()).hexdigest()
    done = VENV / mark
    if done.exists() and done.read_text("utf-8") == digest:
        return
    num_packages = sum("==" in line for line in pins.read_text("utf-8").splitlines())
    print(f"installing the {num_packages} packages of {pins} into {VENV}: the first time takes minutes", flush=True)
    done.unlink(missing_ok=True)
    options = ["--quiet", "--disable-pip-version-check", "--requirement", str(pins)]
    run([str(PYTHON), "-m", "pip", "install", *options])
    for folder in VENV.glob("lib/python3*/site-packages"):
        for editable in folder.glob("__editable__.reprogpt-*.pth"):  # of an earlier version of this
            editable.unlink()
        (folder / PTH).write_text(SOURCES, "utf-8")
    program = VENV / "bin" / "reprogpt"
    program.write_text(PROGRAM, "utf-8")
    program.chmod(0o755)
    done.write_text(digest, "utf-8")


def run(command: list[str]) -> None:
    # Under another locale, venv and pip would write a folder's name in letters that they can't encode.
    code = subprocess.run(command, env={**os.environ, "PYTHONUTF8": "1"}, check=False).returncode
    if code:
        sys.exit(f"`{shlex.join(command)}` ended with exit code {code}; what it printed above says why")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the next `make` continues")
