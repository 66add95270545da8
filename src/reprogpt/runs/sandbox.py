"""Reruns recorded stages in a temporary clone, isolated from the workspace's cache, MLflow store and runs."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from reprogpt.dvc.git import git
from reprogpt.errors import PipelineError
from reprogpt.messages import print_message
from reprogpt.tracking.store.uri import sqlite_uri

STDERR = 2
PREFIX = "reprogpt-verify-"
# The user's DVC settings may name a shared cache; config.local overrides them.
SETTINGS = "[core]\n    analytics = false\n    check_update = false\n[cache]\n    dir = cache\n"


@contextmanager
def sandbox_clone(paths: Iterable[str], *, needed_bytes: int) -> Iterator[Path]:
    """A temporary git and DVC repository with copies of these files, removed when the block ends.

    paths: files, relative to the current folder. needed_bytes: the free disk space required.
    Raises PipelineError if it can't be made.
    """
    with _temporary_clone(needed_bytes) as clone:
        for path in paths:
            (clone / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, clone / path)
        _isolate(clone)
        identity = ("-c", "user.name=reprogpt", "-c", "user.email=reprogpt@localhost")
        _git(clone, "add", "--all")
        _git(clone, *identity, "commit", "--quiet", "-m", "as recorded")
        yield clone


@contextmanager
def commit_clone(commit: str, *, needed_bytes: int) -> Iterator[Path]:
    """The same with a commit of this repository, whose objects are read in place: it may be in no branch.

    commit: its full hash.
    """
    objects = Path(git("rev-parse", "--git-path", "objects") or "").resolve()
    with _temporary_clone(needed_bytes) as clone:
        (clone / ".git/objects/info/alternates").write_text(f"{objects}\n", encoding="utf-8")
        _git(clone, "checkout", "--quiet", "--detach", commit)
        _isolate(clone)
        yield clone


@contextmanager
def _temporary_clone(needed_bytes: int) -> Iterator[Path]:
    """An empty git repository in a temporary folder, on a disk with so many free bytes."""
    place = Path(tempfile.gettempdir()).resolve()
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise PipelineError(
            f"a rerun needs about {_in_gb(needed_bytes)} in {place}, where {_in_gb(free)} are free;\n"
            "make room, or set TMPDIR to a folder on another disk"
        )
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=place) as folder:
        clone = Path(folder) / "clone"
        clone.mkdir()
        _git(clone, "init", "--quiet", "--template=")
        yield clone


def _isolate(clone: Path) -> None:
    """Give it a DVC cache of its own."""
    (clone / ".dvc").mkdir(exist_ok=True)
    (clone / ".dvc" / "config.local").write_text(SETTINGS, encoding="utf-8")


def sandbox_env(clone: Path) -> dict[str, str]:
    """The environment variables for commands in the clone: the present ones, without those that lead out of it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "GIT_"))}
    return kept | {
        # `python` in dvc.yaml must be this one.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "DVC_SITE_CACHE_DIR": str(clone.parent / "site"),
        "GIT_CONFIG_GLOBAL": os.devnull,  # no hooks and signatures of the user
        "GIT_CONFIG_NOSYSTEM": "1",
        "MLFLOW_TRACKING_URI": sandbox_store_uri(clone),
    }


def sandbox_store_uri(clone: Path) -> str:
    """The clone's own MLflow store."""
    return sqlite_uri(clone / "mlflow.db")


def rerun_stages(clone: Path, stages: Sequence[str]) -> None:
    """Run these stages of dvc.yaml in the clone, and no others. Their output goes to standard error.

    On Ctrl-C or any other exception, all its processes are killed at once: there is nothing to save.
    Raises PipelineError if it fails.
    """
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--no-run-cache", "--single-item", *stages]
    print_message(f"rerunning {', '.join(stages)} in {clone}, removed afterwards\n")
    # In its own process group, since DVC does not wait for its stage when a signal ends it.
    process = subprocess.Popen(
        command,
        cwd=clone,
        env=sandbox_env(clone),
        stdin=subprocess.DEVNULL,
        stdout=STDERR,
        process_group=0,
    )
    try:
        code = process.wait()
    except BaseException:
        _kill_group(process)
        raise
    if code:
        raise PipelineError(
            f"the rerun failed: `{' '.join(['dvc', *command[3:]])}` ended with exit code {code} in the temporary\n"
            "clone, and what it printed above says why. Nothing was compared"
        )


def _kill_group(process: "subprocess.Popen[bytes]", patience_seconds: float = 5.0) -> None:
    """Kill the process and its children, and wait for their end: the folder can't be removed under them.

    Zombies that nobody has reaped still count, but write no more, hence the timeout.
    """
    deadline = time.monotonic() + patience_seconds
    with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group that has only ended members
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.02)


def _git(clone: Path, *arguments: str) -> None:
    done = subprocess.run(["git", *arguments], cwd=clone, env=sandbox_env(clone), capture_output=True, check=False)
    if done.returncode:
        raise PipelineError(f"git could not make the temporary clone {clone}: {os.fsdecode(done.stderr).strip()}")


def _in_gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
