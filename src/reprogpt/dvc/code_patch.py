"""The stages' code, as a patch from the commit to what runs.

Files are compared by their content, with an index of our own: git's index trusts a file's time and size, so it misses
an edit of the same length within the second in which DVC wrote the file.
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reprogpt.dvc.git import git
from reprogpt.dvc.secret_scan import secret_in
from reprogpt.messages import visible
from reprogpt.params.loader import DVC_FILE, read_mapping

MAX_PATCH_BYTES = 1_000_000  # all code of this repository is a third of that
_CODE = ("src/", "stages/", "requirements.lock")  # how deps in dvc.yaml begin that are no data
# What the stages import besides the code that dvc.yaml lists: it changes no result, but they don't start without it.
OBSERVERS = (
    "src/reprogpt/dvc/code_patch.py",
    "src/reprogpt/dvc/git.py",
    "src/reprogpt/dvc/secret_scan.py",
    "src/reprogpt/messages.py",
    "src/reprogpt/mlflow_settings.py",
    "src/reprogpt/process/streams.py",
    "src/reprogpt/progress.py",
    "src/reprogpt/serving",
    "src/reprogpt/tags.py",
    "src/reprogpt/tracking",
)
# The form that `git apply` reads, whatever the user's configuration and attributes say.
_PATCH_FORM = (
    *("-p", "--unified=3", "--binary", "--full-index", "--no-renames", "--no-color", "--no-ext-diff", "--no-textconv"),
    *("--no-relative", "--src-prefix=a/", "--dst-prefix=b/", "--submodule=short"),
)


@dataclass(frozen=True)
class CodePatch:
    """Changes of the stages' code since the commit.

    content: for `git apply`, without the files of left_out, which it names. paths: all files that were changed.
    left_out: path -> what in its changes looks like a secret.
    """

    content: bytes
    paths: list[str]
    left_out: Mapping[str, str]


def code_patch() -> CodePatch | None:
    """What has to be applied to the commit to get the code as it is now; None where there is no commit.

    It covers dvc.yaml, the code and requirements.lock that dvc.yaml's stages list, since nothing else can change a
    result, and OBSERVERS; new .py files in a listed folder, too. No other file of the workspace is read, such as .env,
    nor a module that a stage imports and dvc.yaml does not list: DVC misses its edits as well.
    """
    if git("rev-parse", "--verify", "HEAD") is None:
        return None
    with tempfile.TemporaryDirectory(prefix="reprogpt-code-") as folder:
        index = _FreshIndex(Path(folder))
        try:
            index.run("read-tree", "HEAD")
            index.run("update-index", "--add", "--remove", "-z", "--stdin", stdin="\0".join(stage_code()).encode())
            changed = index.run("diff-index", "--cached", "--name-only", "--relative", "-z", "HEAD")
            names = [name for name in changed.decode("utf-8", "surrogateescape").split("\0") if name]
            diffs = {name: index.run("diff-index", "--cached", *_PATCH_FORM, "HEAD", "--", name) for name in names}
        except (OSError, subprocess.CalledProcessError):
            return None
    found = {name: secret_in(name, diff.decode("utf-8", "replace")) for name, diff in diffs.items()}
    left_out = {name: what for name, what in found.items() if what}
    # `git apply` skips what comes before the first file.
    notes = [f"Left out: {visible(name)}, which may hold a secret: {what}.\n" for name, what in left_out.items()]
    kept = [diff for name, diff in diffs.items() if name not in left_out]
    return CodePatch("".join(notes).encode("utf-8", "replace") + b"".join(kept), names, left_out)


def stage_code() -> list[str]:
    """The paths that the patch is about, those that the commit has and the workspace has not among them."""
    stages = read_mapping(DVC_FILE)["stages"].values()
    deps = {dep for stage in stages for dep in stage.get("deps", []) if dep.startswith(_CODE)}
    listed = sorted(deps.union(OBSERVERS))
    committed = git("ls-tree", "-r", "-z", "--name-only", "HEAD", "--", *listed) or ""
    candidates = [file for path in map(Path, listed) for file in (path, *path.rglob("*.py"))]
    names = [*committed.split("\0"), *(file.as_posix() for file in candidates if file.is_file())]
    return sorted({name for name in names if name.endswith(".py") or name in deps} | {str(DVC_FILE)})


class _FreshIndex:
    """An index without any file times, and a place for new objects, so that the repository is only read."""

    def __init__(self, folder: Path) -> None:
        objects = folder / "objects"
        objects.mkdir()
        repository_objects = Path(git("rev-parse", "--git-path", "objects") or "").resolve()
        others = [str(repository_objects), os.environ.get("GIT_ALTERNATE_OBJECT_DIRECTORIES", "")]
        self._env = os.environ | {
            "GIT_INDEX_FILE": str(folder / "index"),
            "GIT_OBJECT_DIRECTORY": str(objects),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": os.pathsep.join(filter(None, others)),
        }
        self._env.pop("GIT_DIFF_OPTS", None)

    def run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        command = [
            "git",
            "--literal-pathspecs",
            "-c",
            "core.safecrlf=false",
            "-c",
            "core.fsmonitor=false",
            "-c",
            "core.splitIndex=false",
        ]
        command += ["-c", "diff.suppressBlankEmpty=false", *arguments]
        return subprocess.run(command, env=self._env, input=stdin, capture_output=True, check=True).stdout
