"""Digests as DVC records them, and the run key of a stage's inputs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from reprogpt.dvc import digest
from reprogpt.dvc.digest import cached_md5, dvc_md5, files_in
from reprogpt.dvc.lock import locked_stage
from reprogpt.dvc.pipeline import announce_recorded_outs, is_up_to_date, out_paths, run_key, stage_inputs
from reprogpt.paths import repository_root

ROOT = Path(__file__).resolve().parents[2]
# A folder under names whose order by characters differs from their order by folder, one of them not ASCII.
FOLDER = {"a/b": b"1", "a-b": b"2", "a.b": b"", "a/c/d": b"4", "é": b"5"}
PIPELINE = """\
stages:
  train:
    cmd: mkdir -p folder/a && cp in.txt out.txt && cp in.txt out.json && cp in.txt folder/a/b && cp in.txt folder/a-b
    params: [seed, peak_lr]
    deps: [in.txt, code]
    outs:
    - out.txt
    - folder
    metrics:
    - out.json:
        cache: false
"""
PARAMS = "seed: 123\npeak_lr: 0.00001\ntop_k: 25\n"


def in_repository(folder: Path, *commands: list[str]) -> None:
    """Run git or dvc commands in folder, without the machine's own settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"DVC_NO_ANALYTICS": "1", "DVC_GLOBAL_CONFIG_DIR": str(folder), "DVC_SYSTEM_CONFIG_DIR": str(folder)}
    for command in commands:
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=120)


def dvc(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dvc", *arguments]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PIPELINE, run once by the real DVC."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    (folder / "params.yaml").write_text(PARAMS, encoding="utf-8")
    (folder / "in.txt").write_bytes(b"text\r\n")
    for name, content in FOLDER.items():
        (folder / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "code" / name).write_bytes(content)
    in_repository(folder, ["git", "init", "--quiet"], dvc("init", "--quiet"), dvc("repro", "--quiet"))
    return folder


@pytest.fixture
def workspace(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of the repository after the run."""
    folder = tmp_path / "work"
    shutil.copytree(repository, folder)
    monkeypatch.chdir(folder)
    return folder


def recorded(kind: str) -> dict[str, str]:
    """Path to md5 in dvc.lock."""
    stage = YAML(typ="safe").load(Path("dvc.lock"))["stages"]["train"]
    return {entry["path"]: entry["md5"] for entry in stage[kind]}


def test_digest_of_a_file_and_of_a_folder_is_dvcs(workspace: Path) -> None:
    found = {path: dvc_md5(Path(path)) for path in ("in.txt", "code")}
    assert found == recorded("deps")
    assert found["code"].endswith(".dir")


def test_digests_of_outs_and_metrics_are_dvcs(workspace: Path) -> None:
    paths = out_paths(YAML(typ="safe").load(Path("dvc.yaml"))["stages"]["train"])
    assert paths == ["out.txt", "folder", "out.json"]
    assert {path: dvc_md5(Path(path)) for path in paths} == recorded("outs")


def test_files_that_dvcignore_excludes_are_not_part_of_a_folder(workspace: Path) -> None:
    """Patterns are relative to the repository's root: /a.b does not exclude code/a.b."""
    Path(".dvcignore").write_text("__pycache__\n*.pyc\n/a.b\n!code/kept.pyc\n", encoding="utf-8")
    for name in ("code/__pycache__/b.cpython-311.pyc", "code/a/c/__pycache__/d", "code/b.pyc"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"compiled")
    assert {file.relative_to("code").as_posix() for file in files_in(Path("code"))} == set(FOLDER)
    assert dvc_md5(Path("code")) == recorded("deps")["code"]
    assert is_up_to_date("train")
    Path("code/kept.pyc").write_bytes(b"compiled")
    assert dvc_md5(Path("code")) != recorded("deps")["code"]


def test_patterns_do_not_apply_to_the_folders_above_an_absolute_one(workspace: Path) -> None:
    """`reprogpt verify` digests the outs of a clone, which may lie anywhere."""
    Path(".dvcignore").write_text(f"{workspace.name}\n", encoding="utf-8")
    assert dvc_md5(workspace / "code") == recorded("deps")["code"]


def test_without_a_dvcignore_every_file_of_a_folder_counts(workspace: Path) -> None:
    Path(".dvcignore").unlink()
    Path("code/b.pyc").write_bytes(b"compiled")
    assert {file.name for file in files_in(Path("code"))} == {"b", "a-b", "a.b", "d", "é", "b.pyc"}


def test_digest_of_a_code_folder_is_dvcs_with_this_repositorys_dvcignore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """src/reprogpt/training, a dependency of train, beside the byproducts of running it."""
    name = "src/reprogpt/training"
    shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    monkeypatch.chdir(tmp_path)
    digest_of_sources = dvc_md5(Path(name))
    for byproduct in ("__pycache__/loop.cpython-311.pyc", "loop.pyc", ".loop.py.1.tmp"):
        (tmp_path / name / byproduct).parent.mkdir(exist_ok=True)
        (tmp_path / name / byproduct).write_bytes(b"compiled")
    Path("dvc.yaml").write_text(f"stages:\n  train:\n    cmd: 'true'\n    deps: [{name}]\n", encoding="utf-8")
    in_repository(tmp_path, ["git", "init", "--quiet"], dvc("init", "--quiet"), dvc("repro", "--quiet"))
    assert recorded("deps") == {name: digest_of_sources} == {name: dvc_md5(Path(name))}


@pytest.mark.parametrize("large_bytes", [1, 10**6])
def test_the_digest_of_a_large_link_into_dvcs_cache_is_its_name_there(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, large_bytes: int
) -> None:
    monkeypatch.setattr(digest, "LARGE_FILE_BYTES", large_bytes)
    cache = workspace / ".dvc/cache/files/md5"
    for path, md5 in recorded("outs").items():
        assert cached_md5(Path(path)) == md5
        assert (cache / md5[:2] / md5[2:]).is_file()  # where DVC has it
    (cache / "ab").mkdir(exist_ok=True)
    (cache / "ab" / "c123").write_bytes(b"a name that is no digest")
    os.link(cache / "ab" / "c123", "linked")
    shutil.copy("linked", "copied")
    assert cached_md5(Path("linked")) == ("abc123" if large_bytes == 1 else dvc_md5(Path("linked")))
    assert cached_md5(Path("copied")) == dvc_md5(Path("copied")) == dvc_md5(Path("linked"))


def test_inputs_are_the_stages_own_and_no_others(workspace: Path) -> None:
    inputs = stage_inputs("train")
    assert list(inputs["deps"]) == ["in.txt", "code"]
    assert inputs["params"] == {"seed": 123, "peak_lr": 0.00001}
    assert inputs["cmd"].endswith("cp in.txt folder/a-b")


def test_run_key_is_32_hex_digits_and_stays_the_same(workspace: Path) -> None:
    key = run_key()
    assert len(key) == 32 and set(key) <= set("0123456789abcdef")
    assert run_key() == key


def replace(path: str, old: str, new: str) -> Callable[[], Any]:
    def act() -> None:
        text = Path(path).read_text("utf-8")
        assert old in text
        Path(path).write_text(text.replace(old, new), encoding="utf-8")

    return act


def rename() -> None:
    Path("code/a-b").rename("code/a_b")


INPUT_CHANGES = {
    "a parameter": replace("params.yaml", "peak_lr: 0.00001", "peak_lr: 0.00002"),
    "a dependency's bytes": lambda: Path("in.txt").write_bytes(b"text\n"),
    "a file in a dependency's folder": lambda: Path("code/a.b").write_bytes(b"3"),
    "a name in a dependency's folder": rename,
    "the command": replace("dvc.yaml", "cmd: mkdir", "cmd: exec mkdir"),
    "the list of dependencies": replace("dvc.yaml", "deps: [in.txt, code]", "deps: [in.txt]"),
    "the list of parameters": replace("dvc.yaml", "params: [seed, peak_lr]", "params: [seed]"),
}
OTHER_CHANGES = {
    "a key the stage does not list": replace("params.yaml", "top_k: 25", "top_k: 26"),
    "another spelling of a value": replace("params.yaml", "0.00001", "1e-05  # the same"),
    "the order of keys": lambda: Path("params.yaml").write_text("peak_lr: 1e-5\nseed: 123\n", encoding="utf-8"),
    "the order of dependencies": replace("dvc.yaml", "[in.txt, code]", "[code, in.txt]"),
}


@pytest.mark.parametrize("change", INPUT_CHANGES.values(), ids=INPUT_CHANGES.keys())
def test_a_changed_input_changes_the_run_key_and_outdates_the_stage(workspace: Path, change: Callable[[], Any]) -> None:
    before = run_key()
    assert is_up_to_date("train")
    change()
    assert run_key() != before
    assert not is_up_to_date("train")


@pytest.mark.parametrize("change", OTHER_CHANGES.values(), ids=OTHER_CHANGES.keys())
def test_nothing_else_changes_the_run_key_or_outdates_the_stage(workspace: Path, change: Callable[[], Any]) -> None:
    before = run_key()
    change()
    assert run_key() == before
    assert is_up_to_date("train")


@pytest.mark.parametrize("path", ["out.txt", "out.json", "folder/a/b"])
def test_a_missing_or_altered_out_outdates_the_stage(workspace: Path, path: str) -> None:
    Path(path).unlink()
    assert not is_up_to_date("train")
    Path(path).write_bytes(b"other")
    assert not is_up_to_date("train")


def test_a_stage_that_never_ran_is_not_up_to_date(workspace: Path) -> None:
    assert locked_stage("plot") == {}
    assert not is_up_to_date("plot")
    Path("dvc.lock").unlink()
    assert locked_stage("train") == {}
    assert not is_up_to_date("train")


def test_the_root_is_dvcs_or_the_current_folder(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repository_root() == workspace
    monkeypatch.setenv("DVC_ROOT", "/somewhere")
    assert repository_root() == Path("/somewhere")


def test_outs_that_are_the_recorded_ones_are_announced(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    announce_recorded_outs("train", stage_inputs("train"))
    assert capsys.readouterr() == ("", "the recorded bits: all 3 outs of train are those of dvc.lock\n")


def test_outs_that_differ_from_the_recorded_ones_are_named(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder/a-b").write_bytes(b"other")
    announce_recorded_outs("train", stage_inputs("train"))
    assert capsys.readouterr().err.startswith("NOT the recorded bits: folder differ from dvc.lock")


@pytest.mark.parametrize("change", ["inputs", "no lock"])
def test_of_other_inputs_or_without_a_lock_nothing_is_announced(
    change: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if change == "inputs":
        Path("in.txt").write_bytes(b"other")
    else:
        Path("dvc.lock").unlink()
    announce_recorded_outs("train", stage_inputs("train"))
    assert capsys.readouterr() == ("", "")
