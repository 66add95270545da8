"""The stages' code, and the patch that gives it back from the commit."""

import subprocess
import sys
from pathlib import Path

import pytest

from reprogpt.dvc.code_patch import code_patch, stage_code
from reprogpt.tracking.deliver.outbox import open_outbox
from reprogpt.tracking.log import training as training_records
from tests.git import git

DEPS = "data/text, requirements.lock, src/pkg, src/one.py, stages/__init__.py, stages/train.py"
DVC = f"stages: {{train: {{deps: [{DEPS}]}}}}"
FILES = {
    "dvc.yaml": DVC,
    "requirements.lock": "torch==1\n",
    "stages/__init__.py": "",
    "stages/train.py": "import sys\nsys.path.insert(0, 'src')\nfrom pkg import loop\nprint(loop.LR)\n",
    "src/pkg/__init__.py": "",
    "src/pkg/loop.py": "from pkg.rate import LR\n",
    "src/pkg/rate.py": "LR = 1\n",
    "src/pkg/old.py": "\n",
    "src/one.py": "ONE = 1\n",
    "src/two.py": "1\n",
    "src/other/tool.py": "1\n",
    "src/reprogpt/progress.py": "1\n",
    "data/text": "text\n",
    "README.md": "a\n",
    ".dvc/config": "[core]\n",
}
SECRET = "AKIA-SECRET"


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with everything committed."""
    root = tmp_path / "clone"
    for name, content in FILES.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text(content)
    monkeypatch.chdir(root)
    git("init", "-q")
    git("add", "--all")
    git("commit", "-qm", "all")
    return root


def applied_to_a_clean_clone(repository: Path, patch: bytes) -> Path:
    clone = repository.parent / "clean"
    git("clone", "-q", str(repository), str(clone))
    (repository.parent / "patch").write_bytes(patch)
    git("apply", str(repository.parent / "patch"), folder=clone)
    return clone


def runs(folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "-m", "stages.train"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def test_code_is_what_dvc_yaml_lists_and_the_observers() -> None:
    package = {f"src/pkg/{name}.py" for name in ("__init__", "loop", "rate", "old")}
    listed = {"dvc.yaml", "requirements.lock", "src/one.py", "stages/__init__.py", "stages/train.py"}
    assert set(stage_code()) == package | listed | {"src/reprogpt/progress.py"}


def test_code_as_it_was_committed_has_an_empty_patch() -> None:
    patch = code_patch()
    assert patch is not None and (patch.content, patch.paths) == (b"", [])


@pytest.mark.parametrize("staged", [[], ["add", "--all"], ["add", "-N", "."]], ids=["", "staged", "intent-to-add"])
def test_secrets_and_other_files_are_never_in_the_patch(repository: Path, staged: list[str]) -> None:
    names = (".env", ".dvc/config", "README.md", "data/text", "stages/key.pem", "x.py")
    for name in (*names, *(f"src/{name}" for name in ("other/tool.py", "two.py", "pkg/secrets.env", "x.py"))):
        (repository / name).write_text(SECRET)
    (repository / "src/pkg/rate.py").write_text("LR = 2\n")
    if staged:
        git(*staged)
    patch = code_patch()
    assert patch is not None and patch.paths == ["src/pkg/rate.py"]
    assert SECRET.encode() not in patch.content and b"LR = 2" in patch.content


def test_the_patch_gives_the_code_that_ran_with_its_new_files(repository: Path) -> None:
    (repository / "src/pkg/rate.py").write_text("from pkg.schedule import LR\n")
    (repository / "src/pkg/schedule.py").write_text("from .numbers_of_mine import LR\n")
    (repository / "src/pkg/numbers_of_mine.py").write_bytes("LR = 'ü'\r\n".encode())
    (repository / "src/pkg/old.py").unlink()
    (repository / "src/one.py").unlink()
    (repository / "src/reprogpt/progress.py").write_text("2\n")
    (repository / "requirements.lock").write_text("torch==2\n")
    (repository / "dvc.yaml").write_text(f"{DVC}\n# edited\n")
    before = git("status", "--porcelain"), sorted(repository.glob(".git/objects/*/*"))
    patch = code_patch()
    assert patch is not None
    assert (git("status", "--porcelain"), sorted(repository.glob(".git/objects/*/*"))) == before
    clean = applied_to_a_clean_clone(repository, patch.content)
    assert runs(clean) == runs(repository) == "ü\n"
    assert (clean / "src/pkg/numbers_of_mine.py").read_bytes() == "LR = 'ü'\r\n".encode()
    for name in ("dvc.yaml", "requirements.lock", "src/reprogpt/progress.py"):
        assert (clean / name).read_bytes() == (repository / name).read_bytes()
    assert not (clean / "src/pkg/old.py").exists() and not (clean / "src/one.py").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"diff.noprefix": "true"},
        {"diff.mnemonicPrefix": "true"},
        {"diff.external": "false"},
        {"color.ui": "always", "color.diff": "always"},
        {"diff.python.textconv": "tr a-z A-Z <"},
        {"diff.python.command": "false"},
        {"diff.context": "0"},
        {"diff.srcPrefix": "old/", "diff.dstPrefix": "new/"},
        {"diff.suppressBlankEmpty": "true"},
        {"core.quotePath": "false"},
        {"diff.relative": "true"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_no_setting_of_the_user_spoils_the_patch(repository: Path, settings: dict[str, str]) -> None:
    for key, value in settings.items():
        git("config", key, value)
    (repository / ".git/info/attributes").write_text("*.py diff=python\n")
    (repository / "src/pkg/rate.py").write_text("LR = 2\n")
    patch = code_patch()
    assert patch is not None
    assert runs(applied_to_a_clean_clone(repository, patch.content)) == "2\n"


def test_a_pipeline_in_a_folder_of_a_repository_has_its_own_code_only(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "sub/stages").mkdir(parents=True)
    (repository / "sub/stages/train.py").write_text("1\n")
    (repository / "sub/dvc.yaml").write_text(DVC)
    git("add", "--all")
    git("commit", "-qm", "sub")
    (repository / "stages/train.py").write_text("2\n")
    (repository / "sub/stages/train.py").write_text("3\n")
    monkeypatch.chdir(repository / "sub")
    patch = code_patch()
    assert patch is not None and patch.paths == ["stages/train.py"]
    clean = applied_to_a_clean_clone(repository, patch.content)
    assert (clean / "sub/stages/train.py").read_text() == "3\n"


def test_what_is_recorded_is_printed(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "src/pkg/rate.py").write_text("LR = 2\n")
    outbox = open_outbox("a")
    training_records._queue_patch(outbox)
    assert "uncommitted.patch records the uncommitted code: src/pkg/rate.py (1 in all)" in capsys.readouterr().err
    assert [record.kind for record in outbox.records()] == ["file"]


def test_a_file_with_a_secret_is_left_out_and_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "src/pkg/rate.py").write_text("LR = 2\n")
    (repository / "src/pkg/tracker.py").write_text(f"PASSWORD = '{SECRET}'\n")
    (repository / "src/pkg/secrets_local.py").write_text(f"MINE = '{SECRET}'\n")
    patch = code_patch()
    assert patch is not None and SECRET.encode() not in patch.content
    assert patch.paths == ["src/pkg/rate.py", "src/pkg/secrets_local.py", "src/pkg/tracker.py"]
    assert set(patch.left_out) == {"src/pkg/secrets_local.py", "src/pkg/tracker.py"}
    assert runs(applied_to_a_clean_clone(repository, patch.content)) == "2\n"
    outbox = open_outbox("a")
    training_records._queue_patch(outbox)
    printed = capsys.readouterr().err
    for path in patch.left_out:
        assert f"leaves out {path}, " in printed and f"Left out: {path}, " in patch.content.decode()
    assert "records the uncommitted code: src/pkg/rate.py (1 in all)" in printed and SECRET not in printed
    assert (outbox.folder / "uncommitted.patch").read_bytes() == patch.content


def test_a_secret_that_an_edit_removes_is_not_shown_either(repository: Path) -> None:
    (repository / "src/pkg/rate.py").write_text(f"LR = 1\nPASSWORD = '{SECRET}'\n")
    git("commit", "-qam", "by mistake")
    (repository / "src/pkg/rate.py").write_text("LR = 2\n")
    patch = code_patch()
    assert patch is not None and patch.paths == ["src/pkg/rate.py"]
    assert patch.content == b"Left out: src/pkg/rate.py, which may hold a secret: a value with the name of a secret.\n"


def test_a_patch_that_is_too_large_is_not_recorded_and_the_message_says_why(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "src/pkg/rate.py").write_text("LR = 2\n" + "# 345678901234\n" * 100_000)
    outbox = open_outbox("a")
    training_records._queue_patch(outbox)
    printed = capsys.readouterr().err
    assert "is not recorded" in printed and "src/pkg/rate.py" in printed and "more than 1000000" in printed
    assert list(outbox.records()) == []
