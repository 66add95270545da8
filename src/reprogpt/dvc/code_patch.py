"""The stages' code: which files it is, and a patch from the commit to the code that runs.

Files are asked by their content, with an index of their own: git's index trusts a file's time and size, so it misses
an edit of the same length within the second in which DVC wrote the file.
"""

import ast
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from reprogpt.dvc.git import git
from reprogpt.params.loader import DVC_FILE

MAX_PATCH_BYTES = 1_000_000  # all code of this repository is a third of that
_STAGES, _PACKAGES = Path("stages"), Path("src")
# The form that `git apply` reads, whatever the user's configuration and attributes say.
_PATCH_FORM = (
    *("-p", "--unified=3", "--binary", "--full-index", "--no-renames", "--no-color", "--no-ext-diff", "--no-textconv"),
    *("--no-relative", "--src-prefix=a/", "--dst-prefix=b/", "--submodule=short"),
)


@dataclass(frozen=True)
class CodePatch:
    """Changes of the stages' code since the commit. content: for `git apply`. paths: the files that it changes."""

    content: bytes
    paths: list[str]


def code_patch() -> CodePatch | None:
    """What has to be applied to the commit to get the code as it is now; None where there is no commit.

    Only dvc.yaml and the files that the stages import are in it, tracked or not: no other file of the workspace, such
    as .env or .dvc/config, is read.
    """
    if git("rev-parse", "--verify", "HEAD") is None:
        return None
    code = stage_code()
    paths = sorted({*map(str, code), *_deleted_code({path.parent for path in code}), str(DVC_FILE)})
    with tempfile.TemporaryDirectory(prefix="reprogpt-code-") as folder:
        index = _FreshIndex(Path(folder))
        try:
            index.run("read-tree", "HEAD")
            index.run("update-index", "--add", "--remove", "-z", "--stdin", stdin="\0".join(paths).encode())
            changed = index.run("diff-index", "--cached", "--name-only", "--relative", "-z", "HEAD")
            names = [name for name in changed.decode("utf-8", "surrogateescape").split("\0") if name]
            content = index.run("diff-index", "--cached", *_PATCH_FORM, "HEAD") if names else b""
        except (OSError, subprocess.CalledProcessError):
            return None
    return CodePatch(content, names)


def stage_code() -> set[Path]:
    """The files that the stages consist of: stages/*.py, and what they import from src/ and the root, direct or not."""
    seen: set[Path] = set()
    waiting = set(_STAGES.glob("*.py"))
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting |= _imported_files(path)
    return seen


def _imported_files(path: Path) -> set[Path]:
    """Our files that Python runs when it imports what `path` imports, parents' __init__ included."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # an unfinished edit of a stage that does not run now
        return set()
    base = _PACKAGES if path.is_relative_to(_PACKAGES) else Path()
    package = path.relative_to(base).parent.parts
    names: set[tuple[str, ...]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else ()
            module = (*parent, *(node.module or "").split(".")) if node.module else parent
            names |= {module, *((*module, alias.name) for alias in node.names)}
    prefixes = {name[:end] for name in names for end in range(1, len(name) + 1)}
    candidates = [base.joinpath(*prefix) for base in (_PACKAGES, Path()) for prefix in prefixes]
    files = [file for module in candidates for file in (module.with_suffix(".py"), module / "__init__.py")]
    return {file for file in files if file.is_file()}


def _deleted_code(folders: set[Path]) -> list[str]:
    """Files of the commit beside code of the stages that are deleted now: a folder is a dependency as a whole."""
    listed = git("ls-tree", "-r", "-z", "--name-only", "HEAD", "--", str(_STAGES), str(_PACKAGES)) or ""
    names = [name for name in listed.split("\0") if name.endswith(".py")]
    return [name for name in names if Path(name).parent in folders and not Path(name).exists()]


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
        command = ["git", "-c", "core.safecrlf=false", "-c", "core.fsmonitor=false", "-c", "core.splitIndex=false"]
        command += ["-c", "diff.suppressBlankEmpty=false", *arguments]
        return subprocess.run(command, env=self._env, input=stdin, capture_output=True, check=True).stdout
