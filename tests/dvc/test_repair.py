"""What git and DVC need of the folder, said before DVC fails."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc import rwlock as rwlock_of_dvc
from dvc.fs import localfs

from reprogpt.dvc import rwlock
from reprogpt.dvc.repair import (
    NO_IDENTITY,
    NOT_ASCII,
    SHALLOW,
    remove_cut_rwlock,
    require_repository,
    restore_lock,
    warnings,
)
from reprogpt.dvc.revisions import Workspace
from reprogpt.errors import MergeConflictError, PipelineError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A git repository in a folder of the given name, with an identity."""
    root = tmp_path / getattr(request, "param", "ascii")
    root.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    (root / ".dvc").mkdir()
    monkeypatch.chdir(root)
    config = tmp_path / "gitconfig"
    config.write_text("[user]\n name = n\n email = n@n.invalid\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    return root


def test_an_archive_without_git_is_refused_with_the_way_out(folder: Path) -> None:
    require_repository()
    (folder / ".git").rename(folder.parent / "gone")
    with pytest.raises(PipelineError, match="not a git repository") as caught:
        require_repository()
    subprocess.run(["sh", "-c", "touch a && " + str(caught.value).splitlines()[-1]], check=True)
    require_repository()


def test_git_that_is_not_installed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PipelineError, match="git is not installed"):
        require_repository()


def test_a_missing_identity_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert warnings() == []
    (folder.parent / "gitconfig").write_text("[user]\n useConfigOnly = true\n")
    assert warnings() == [NO_IDENTITY]


@pytest.mark.parametrize("folder", ["日本"], indirect=True)
def test_a_path_that_is_not_ascii_is_a_warning_until_dvcs_cache_is_elsewhere(folder: Path) -> None:
    """DVC itself is asked: the remedy is no longer needed once it can write such a path."""
    dvc = [sys.executable, "-m", "dvc"]
    env = os.environ | {"DVC_NO_ANALYTICS": "1"}
    (folder / ".dvc").rmdir()
    subprocess.run([*dvc, "init", "-q"], env=env, check=True)
    assert warnings() == [NOT_ASCII]
    refused = subprocess.run(
        [*dvc, "cache", "dir", "--local", str(folder / "cache")], env=env, capture_output=True, text=True, check=False
    )
    assert refused.returncode and "'ascii' codec can't encode" in refused.stderr
    elsewhere = NOT_ASCII.splitlines()[-1].split(" && ")[0].replace("/ASCII/PATH", "/tmp/reprogpt-cache")
    subprocess.run([*dvc, *elsewhere.split()[1:]], env=env, check=True)
    assert warnings() == []


def test_check_says_it(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from reprogpt.cli import check

    root = ROOT
    for name in ("params.yaml", "dvc.yaml"):
        (folder / name).write_bytes((root / name).read_bytes())
    monkeypatch.setattr(check, "warnings", lambda: ["no identity"])
    assert check.check.callback is not None
    check.check.callback()
    assert "warning: no identity" in capsys.readouterr().err


def test_a_shallow_clone_is_told_how_to_get_its_history(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", name], cwd=folder, check=True)
    assert warnings() == []
    subprocess.run(["git", "clone", "-q", "--depth", "1", folder.as_uri(), "shallow"], cwd=folder.parent, check=True)
    monkeypatch.chdir(folder.parent / "shallow")
    assert warnings() == [SHALLOW]
    subprocess.run(SHALLOW.rpartition(": ")[2].split(), check=True)
    assert warnings() == []


def test_line_ends_are_those_of_the_commit_whatever_git_is_set_to(folder: Path) -> None:
    """DVC's digests are of the bytes: with core.autocrlf all of the code would count as modified."""
    shutil.copy(ROOT / ".gitattributes", folder)
    (folder / "code.py").write_bytes(b"a = 1\n")
    subprocess.run(["git", "add", "--all"], check=True)
    subprocess.run(["git", "commit", "-qm", "one"], check=True)
    clone = ["git", "-c", "core.autocrlf=true", "clone", "-q", ".", "../windows"]
    subprocess.run(clone, check=True)
    assert (folder.parent / "windows/code.py").read_bytes() == b"a = 1\n"


LOCK = (ROOT / "dvc.lock").read_bytes()


def test_a_cut_dvc_lock_is_restored_and_kept(folder: Path) -> None:
    lock = folder / "dvc.lock"
    shutil.copy(ROOT / "dvc.yaml", folder)
    assert restore_lock() is None  # there is none
    lock.write_bytes(LOCK)
    subprocess.run(["git", "add", "dvc.lock"], check=True)
    subprocess.run(["git", "commit", "-qm", "result"], check=True)
    assert restore_lock() is None
    valid_yaml = (LOCK.index(b"  split:"), LOCK.index(b"  evaluate:"), len(LOCK) - 1)
    for length in (0, 12, 25, 700, 1000, 1500, len(LOCK) // 2 + 3, *valid_yaml):
        cut = LOCK[:length]
        lock.write_bytes(cut)
        assert "the committed one is restored" in str(restore_lock())
        assert lock.read_bytes() == LOCK and (folder / "dvc.lock.cut").read_bytes() == cut


def test_a_dvc_lock_without_a_stage_that_dvc_yaml_no_longer_defines_is_whole(folder: Path) -> None:
    (folder / "dvc.yaml").write_text("stages: {kept: {cmd: a}, new: {cmd: b}}")
    kept = "schema: '2.0'\nstages:\n  kept: {cmd: a}\n"
    (folder / "dvc.lock").write_text(f"{kept}  dropped: {{cmd: c}}\n")
    subprocess.run(["git", "add", "dvc.lock"], check=True)
    subprocess.run(["git", "commit", "-qm", "result"], check=True)
    (folder / "dvc.lock").write_text(kept)
    assert restore_lock() is None


ASK_DVC = """
import sys
from pathlib import Path
from dvc.cli import main
lock = Path("dvc.lock").read_bytes()
for length in sys.argv[1:]:
    Path("dvc.lock").write_bytes(lock[:int(length)])
    code = main(["dag"])
    print(f"exit {code} after {length}", file=sys.stderr, flush=True)
"""


def test_dvcs_words_for_a_cut_dvc_lock_are_those_of_the_documentation(folder: Path) -> None:
    """DVC itself is asked: whatever it refuses is restored."""
    lengths = (0, 5, 12, 16, 25, 40, 60, 1000, LOCK.index(b" path: src/") + 7, len(LOCK) - 5)
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "dvc.lock").write_bytes(LOCK)
    subprocess.run(["git", "add", "dvc.lock"], check=True)
    subprocess.run(["git", "commit", "-qm", "result"], check=True)
    env = os.environ | {"DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-c", ASK_DVC, *map(str, lengths)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    answers = re.findall(r"(.*?)exit (\d+) after (\d+)\n", done.stderr, flags=re.DOTALL)
    assert [int(length) for _, _, length in answers] == list(lengths)
    page = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    documented = set(re.findall(r"`('\./dvc\.lock' [^`]+)`", page))
    met = set()
    for said, code, length in answers:
        (folder / "dvc.lock").write_bytes(LOCK[: int(length)])
        assert restore_lock() is not None, (length, said)
        if code != "0":
            met |= {words for words in documented if words in said}
            assert any(words in said for words in documented), said
    assert met == documented


def test_a_cut_dvc_lock_that_was_never_committed_is_moved_away(folder: Path) -> None:
    (folder / "dvc.lock").write_bytes(LOCK[:12])
    assert "DVC writes a new one" in str(restore_lock())
    assert not (folder / "dvc.lock").exists()


def test_a_merge_conflict_in_dvc_lock_has_one_message_and_its_way_out_works(folder: Path) -> None:
    """Two branches that changed peak_lr, merged by git, and brought in order by DVC."""
    env = os.environ | {"DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def sh(command: str, code: int = 0) -> str:
        done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout

    def train(peak_lr: float) -> None:
        (folder / "params.yaml").write_text(f"peak_lr: {peak_lr}\n")
        sh(f"dvc repro -q && git add --all && git commit -qm {peak_lr}")

    (folder / "dvc.yaml").write_text("stages: {train: {cmd: cp params.yaml model, params: [peak_lr], outs: [model]}}")
    sh("rmdir .dvc && dvc init -q && git checkout -qb main")
    train(0.1)
    sh("git checkout -qb other")
    train(0.2)
    sh("git checkout -q main")
    train(0.3)
    sh("git merge -q other", code=1)
    with pytest.raises(MergeConflictError, match=r"params\.yaml of the workspace has a merge conflict, at line 1"):
        _ = Workspace().params
    (folder / "params.yaml").write_text("peak_lr: 0.2\n")
    conflict = (folder / "dvc.lock").read_bytes()
    with pytest.raises(MergeConflictError) as caught:
        _ = Workspace().lock
    with pytest.raises(MergeConflictError, match=r"^dvc.lock has a merge conflict, at line \d+\.\n"):
        restore_lock()
    assert (folder / "dvc.lock").read_bytes() == conflict
    (command,) = [line for line in str(caught.value).splitlines() if line.startswith("git checkout")]
    sh(f"{command} && git add params.yaml && git commit -qm merged")
    assert restore_lock() is None
    assert sh("dvc status").strip() == "Data and pipelines are up to date."
    assert "0.2" in (folder / "model").read_text()


def test_a_cut_record_of_dvcs_processes_is_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC itself is asked: it stops over each cut, and no more afterwards."""
    monkeypatch.setattr(rwlock, "_WAIT", 0.001)
    record_file = folder / ".dvc/tmp/rwlock"
    assert remove_cut_rwlock() is None  # there is none
    record_file.parent.mkdir(parents=True)
    record = b'{"read": {}, "write": {"a": {"pid": 1, "cmd": "dvc repro"}}}'
    record_file.write_bytes(record)
    assert remove_cut_rwlock() is None and record_file.read_bytes() == record

    def dvc_reads_it() -> None:
        with rwlock_of_dvc._edit_rwlock(str(record_file.parent), localfs, False):
            pass

    for length in (0, 1, 30):
        record_file.write_bytes(record[:length])
        with pytest.raises(rwlock_of_dvc.RWLockFileCorruptedError):
            dvc_reads_it()
        assert "it is removed" in str(remove_cut_rwlock())
        dvc_reads_it()
