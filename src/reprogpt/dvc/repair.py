"""What git and DVC need of the repository's folder, found before DVC stops over it without an explanation."""

import shutil
from pathlib import Path

from reprogpt.dvc.digest import cached_files
from reprogpt.dvc.git import git, git_bytes, git_error
from reprogpt.dvc.rwlock import RWLOCK, read_rwlock
from reprogpt.errors import MergeConflictError, ParamsError, PipelineError
from reprogpt.files import write_bytes_atomic
from reprogpt.params.loader import DVC_FILE, LOCK_FILE, parse_mapping, read_mapping

NO_REPOSITORY = (
    "DVC works in a git repository only. In a folder from an archive, make one:\n"
    "git init && git add --all && git commit -m 'from the archive'"
)
NO_IDENTITY = (
    "git has no name and address for its commits, so `dvc exp run --temp` and queued experiments fail\n"
    '("Git user name and email must be configured"). Set them:\n'
    "git config --global user.name NAME && git config --global user.email ADDRESS"
)
NOT_ASCII = (
    "DVC writes its settings in ASCII, so `dvc exp run --temp` and queued experiments fail in this folder, whose path\n"
    "has other letters (\"'ascii' codec can't encode\"). Move DVC's cache to a path without them:\n"
    "dvc cache dir --local /ASCII/PATH && dvc checkout"
)
SHALLOW = (
    "this clone is shallow, so `dvc exp list` and `dvc exp show` don't find the experiments of `--temp` and of the\n"
    "queue. Get the history: git fetch --unshallow"
)


def require_repository() -> None:
    """Raise PipelineError, with git's reason, if the current folder is in no git repository that git can use."""
    if shutil.which("git") is None:
        raise PipelineError("git is not installed, and DVC needs it")
    reason = git_error("rev-parse", "--is-inside-work-tree")  # no repository, or one of another user
    if reason is None:
        return
    advice = "" if "dubious ownership" in reason else f"\n{NO_REPOSITORY}"
    raise PipelineError(f"git can't use {Path.cwd()}: {reason}{advice}")


def restore_lock() -> str | None:
    """Put the committed dvc.lock back if a kill of DVC has cut the file; returns what was done, None if it is whole.

    DVC stops over such a file before any stage starts, or, where the cut left valid YAML, has forgotten stages. What
    was cut is kept beside it; results that it alone recorded are in DVC's run cache, so that no stage runs again for
    them. Raises MergeConflictError.
    """
    if not LOCK_FILE.is_file():
        return None
    committed = git_bytes("show", f"HEAD:./{LOCK_FILE}")
    if not _is_cut(LOCK_FILE.read_bytes(), committed):
        return None
    kept = LOCK_FILE.with_name("dvc.lock.cut")
    LOCK_FILE.replace(kept)
    if committed is None:
        return f"{LOCK_FILE} was cut, as by a kill of dvc; it is kept as {kept}, and DVC writes a new one"
    write_bytes_atomic(LOCK_FILE, committed)
    return f"{LOCK_FILE} was cut, as by a kill of dvc; the committed one is restored, the cut one is kept as {kept}"


def remove_cut_rwlock() -> str | None:
    """Remove DVC's record of its running processes if a kill of DVC has cut it; returns what was done.

    DVC stops over it ("Unable to read RWLock-file"), and advises to remove it.
    """
    try:
        read_rwlock()
    except FileNotFoundError:
        return None
    except ValueError:
        RWLOCK.unlink(missing_ok=True)
        return f"{RWLOCK} was cut, as by a kill of dvc; it is removed, and DVC writes a new one"
    return None


def _is_cut(content: bytes, committed: bytes | None) -> bool:
    """Whether dvc.lock ends early: in a line, against DVC's own schema, or before a stage of the committed one."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        lock = COMPILED_LOCKFILE_SCHEMA(parse_mapping(content, str(LOCK_FILE)))
    except MergeConflictError:
        raise
    except (ParamsError, Invalid):
        return True
    if not content.endswith(b"\n"):
        return True
    recorded = parse_mapping(committed, f"{LOCK_FILE} of HEAD").get("stages", {}) if committed else {}
    still_defined = recorded.keys() & read_mapping(DVC_FILE)["stages"].keys()
    return not still_defined <= lock.get("stages", {}).keys()


def warnings() -> list[str]:
    """What stops some commands of DVC, though not `dvc repro`."""
    listed = []
    if git("var", "GIT_COMMITTER_IDENT") is None:
        listed.append(NO_IDENTITY)
    if not str(cached_files().resolve()).isascii():
        listed.append(NOT_ASCII)
    if git("rev-parse", "--is-shallow-repository") == "true":
        listed.append(SHALLOW)
    return listed
