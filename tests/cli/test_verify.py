"""What verify says, and what it refuses, on a pipeline small enough to see."""

import copy
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reprogpt.cli import verify
from reprogpt.cli.parser import STAGES as NAMES
from reprogpt.compare import Change
from reprogpt.errors import PipelineError
from reprogpt.params.loader import read_mapping
from reprogpt.verify import sandbox
from reprogpt.verify.report import (
    STAGE_DEPENDENCIES,
    OutComparison,
    RunEnvironments,
    conclusion,
    explanation,
    obstacles,
    origins,
    survived,
    table,
)
from reprogpt.verify.sandbox import sandbox_clone, sandbox_env

FILES = {"code.py": "c0", "raw.txt": "r0", "ids.npy": "i0", "model": "m0.dir"}
STAGES: dict[str, Any] = {
    "tokenize": {"cmd": "tok", "deps": ["raw.txt"], "outs": ["ids.npy"]},
    "train": {"cmd": "fit", "deps": ["ids.npy", "code.py"], "params": ["seed"], "outs": ["model"]},
    "plot": {"cmd": "draw", "deps": ["model"], "outs": []},
    "evaluate": {"cmd": "ask", "deps": ["model", "ids.npy"], "outs": []},
}
LOCK: dict[str, Any] = {
    "tokenize": {
        "cmd": "tok",
        "deps": [{"path": "raw.txt", "md5": "r0"}],
        "outs": [{"path": "ids.npy", "md5": "i0", "size": 10}],
    },
    "train": {
        "cmd": "fit",
        "deps": [{"path": "ids.npy", "md5": "i0", "size": 10}, {"path": "code.py", "md5": "c0", "size": 7}],
        "params": {"params.yaml": {"seed": 123}},
        "outs": [{"path": "model", "md5": "m0.dir", "size": 100}],
    },
}
WEIGHTS = OutComparison("train", "data/model", "1" * 32 + ".dir", "2" * 32 + ".dir")
TAGS = {"device": "cpu", "matmul": "onednn", "instruction_set": "AVX512", "torch": "2.9", "numpy": "2.0"} | {
    "threads": "2",
    "tiktoken": "0.14",
    "python": "3.11",
}


def held(
    *repeated: str,
    lock: dict[str, Any] = LOCK,
    seed: int = 123,
    digest: Callable[[str], str | None] = FILES.get,
) -> dict[str, list[str]]:
    return obstacles(lock, STAGES, {"seed": seed}, digest, repeated)


def test_a_workspace_as_recorded_can_be_repeated_whole_or_in_part():
    assert held("tokenize", "train") == held("tokenize") == held("train") == {}


def test_data_that_the_repeat_makes_itself_may_be_altered_or_absent():
    assert held("tokenize", "train", digest={**FILES, "ids.npy": "x", "model": "x"}.get) == {}
    assert held("tokenize", "train", digest={"raw.txt": "r0", "code.py": "c0"}.get) == {}


def test_data_that_the_repeat_starts_from_must_be_here_as_recorded():
    assert held("train", digest={**FILES, "ids.npy": "x"}.get) == {
        "dep ids.npy: other contents than recorded": ["train"]
    }
    assert held("train", digest={"code.py": "c0"}.get) == {"dep ids.npy: not here": ["train"]}
    assert held("tokenize", "train", digest={"code.py": "c0"}.get) == {"dep raw.txt: not here": ["tokenize"]}


def test_edited_code_and_parameters_are_obstacles_to_the_stages_that_read_them():
    edited = {**FILES, "code.py": "c1"}.get
    assert held("tokenize", "train", seed=124, digest=edited) == {
        "dep code.py: other contents than recorded": ["train"],
        "param seed: 123 -> 124": ["train"],
    }
    assert held("tokenize", seed=124, digest=edited) == {}


def test_a_stage_that_never_ran_is_an_obstacle():
    assert held("tokenize", "train", lock={"tokenize": LOCK["tokenize"]}) == {
        "not in dvc.lock: it never ran": ["train"]
    }


def test_a_record_that_does_not_agree_with_itself_is_an_obstacle():
    lock = copy.deepcopy(LOCK)
    lock["tokenize"]["outs"][0]["md5"] = "x"
    assert held("tokenize", "train", lock=lock) == {"dep ids.npy: other contents than recorded": ["train"]}


@pytest.mark.parametrize(
    ("change", "obstacle"),
    [
        ({"cmd": "tik"}, "cmd: tik -> tok"),
        ({"outs": []}, "ids.npy: not in dvc.lock"),
        (
            {"outs": [*LOCK["tokenize"]["outs"], {"path": "old", "md5": "o"}]},
            "old: o -> no longer listed in dvc.yaml",
        ),
    ],
)
def test_another_definition_is_an_obstacle(change, obstacle):
    lock = {**LOCK, "tokenize": {**LOCK["tokenize"], **change}}
    assert held("tokenize", lock=lock) == {obstacle: ["tokenize"]}


def test_the_table_has_a_second_line_for_what_was_found():
    compared = [
        OutComparison("split", "data/corpus/train.txt", "a" * 32, "a" * 32),
        WEIGHTS,
        OutComparison("train", "data/metrics/train.json", "b" * 32, None),
    ]
    lines = table(compared)
    assert lines[1:] == [
        "",
        "split",
        f"  same      data/corpus/train.txt         {'a' * 32}",
        "",
        "train",
        f"  DIFFERS   data/model                    {'1' * 32}.dir",
        f"            found                         {'2' * 32}.dir",
        f"  missing   data/metrics/train.json       {'b' * 32}",
        "            found                         nothing",
    ]
    assert all(len(line) <= 80 for line in lines)
    assert conclusion(compared) == "NOT the same: 2 of 3 outs of 2 stages are not as dvc.lock records"
    assert conclusion(compared[:2]) == "NOT the same: 1 of 2 outs of 2 stages is not as dvc.lock records"
    twice = [compared[0], compared[0]]
    assert conclusion(twice) == "the same: all 2 outs of stage split have the digests that dvc.lock records"


def begins(*out_by_stage: tuple[str, str]) -> list[str]:
    return origins([OutComparison(stage, out, "a", "b") for stage, out in out_by_stage], STAGES)


def test_a_difference_begins_where_all_that_was_read_is_the_same():
    assert begins(("tokenize", "ids.npy"), ("train", "model"), ("plot", "png")) == ["tokenize"]
    assert begins(("train", "model"), ("plot", "png"), ("evaluate", "txt")) == ["train"]
    assert begins(("plot", "png"), ("evaluate", "txt")) == ["plot", "evaluate"]
    assert begins() == []
    same = OutComparison("train", "model", "a", "a")
    assert origins([same, OutComparison("plot", "png", "a", None)], STAGES) == ["plot"]


def told(*stages: str, pins: list[Change] | None = None, text: Change | None = None, **here: str) -> str:
    return "\n".join(explanation(stages, RunEnvironments(TAGS, {**TAGS, **here}, pins or [], text)))


def test_what_is_likelier_to_change_bits_comes_first():
    assert told("train", python="3.12", numpy="2.1", torch="2.10", instruction_set="AVX2", device="cuda") == (
        "the difference begins at train\n"
        "this explains it (recorded -> here), the likeliest first\n"
        "  device: cpu -> cuda\n"
        "  instruction_set: AVX512 -> AVX2\n"
        "  torch: 2.9 -> 2.10\n"
        "  numpy: 2.0 -> 2.1\n"
        "  python: 3.11 -> 3.12"
    )


def test_what_seldom_changes_bits_is_not_said_to_explain_it():
    assert "this may explain it, though it seldom changes bits" in told("train", threads="1")
    assert "this explains it" in told("train", threads="1", torch="2.10")


def test_every_part_of_the_environment_on_record_is_looked_at():
    assert set(ENVIRONMENT_TAGS) <= set(STAGE_DEPENDENCIES["train"])


@pytest.mark.parametrize("stage", ["train", "tokenize", "plot"])
def test_without_a_difference_that_can_matter_it_is_a_bug_or_the_hardware(stage):
    assert told(stage).endswith("so this is a bug, or hardware trouble")
    assert "nothing explains it" in told("tokenize", instruction_set="AVX2")  # tokens are made without torch
    assert "instruction_set: AVX512 -> AVX2" in told("tokenize", "train", instruction_set="AVX2")


def test_a_pinned_version_stands_for_the_recorded_one_where_the_run_does_not_tell():
    pins = [Change(name, "1", "2") for name in ("aiohttp", "torch", "Pillow", "matplotlib")]
    assert told("plot", pins=pins).endswith("first\n  matplotlib: 1 (pinned) -> 2\n  Pillow: 1 (pinned) -> 2")
    assert "nothing explains it" in told("train", pins=pins)
    assert "nothing explains it" in told("split", pins=pins)


def test_an_environment_that_is_not_known_is_said_not_to_be():
    text = "\n".join(explanation(["train"], RunEnvironments(None, TAGS)))
    assert "no MLflow run here trained the recorded weights, so their environment is not\nknown" in text
    assert "  device cpu, matmul onednn, instruction_set AVX512, torch 2.9" in text
    assert "bug" not in text and "explain" not in text
    text = "\n".join(explanation(["train"], RunEnvironments(None, TAGS, [Change("torch", "2.8", "2.9")])))
    assert "this explains it" in text and "  torch: 2.8 (pinned) -> 2.9\n" in text and "environment is not" in text


def test_another_text_explains_it_before_anything_else():
    text = told("fetch", text=Change("corpus", None, "data/offline/b.txt (sha256 12)"), instruction_set="AVX2")
    assert text == (
        "the difference begins at fetch\n"
        "another text was read (recorded -> here)\n"
        "  corpus: not known -> data/offline/b.txt (sha256 12)"
    )


def test_a_result_that_survived_another_environment_says_so():
    older = RunEnvironments(TAGS, {**TAGS, "instruction_set": "AVX2"})
    assert survived(["tokenize", "train"], older)[1:] == ["  instruction_set: AVX512 -> AVX2"]
    assert survived(["tokenize"], older) == [], "which made no use of it"
    assert survived(["train"], RunEnvironments(TAGS, TAGS)) == survived(["train"], RunEnvironments(None, TAGS)) == []


def test_the_command_line_offers_the_stages_of_dvc_yaml():
    assert list(NAMES) == list(read_mapping(Path(__file__).resolve().parents[2] / "dvc.yaml")["stages"])


def test_installed_versions_are_held_against_the_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify, "PINS", tmp_path / "requirements.lock")
    monkeypatch.setattr(verify, "version", {"torch": "2.13.0+cpu", "numpy": "2.4.6"}.__getitem__)
    monkeypatch.setattr(verify, "PackageNotFoundError", KeyError)
    verify.PINS.write_text("# pins\ntorch==2.13.0\nnumpy==2.4.7\nnvidia-cublas==13.0 ; platform_system\n", "utf-8")
    assert verify._other_versions() == [Change("numpy", "2.4.7", "2.4.6")]


def test_room_is_needed_for_the_copies_of_what_is_made_and_for_what_is_read(tmp_path, monkeypatch):
    class Locked:
        lock = LOCK
        params = {"init_from": ""}

    assert verify._needed_bytes(Locked(), ["tokenize", "train"]) == 3 * 110 + 7
    assert verify._needed_bytes(Locked(), ["train"]) == 3 * 100 + 10 + 7
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start").mkdir()
    (tmp_path / "start/model.safetensors").write_bytes(bytes(1000))
    Locked.params = {"init_from": "start"}
    assert verify._needed_bytes(Locked(), ["tokenize", "train"]) == 3 * 110 + 7 + 1000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file; temporary folders are made in another one, which is returned."""
    (tmp_path / "here" / "sub").mkdir(parents=True)
    (tmp_path / "here" / "sub" / "a.txt").write_text("a", "utf-8")
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_too_little_room_is_refused_before_anything_is_copied(folder: Path):
    too_much = shutil.disk_usage(folder).free + 10**12
    with pytest.raises(PipelineError, match="set TMPDIR"), sandbox_clone(["sub/a.txt"], needed_bytes=too_much):
        pass
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, PipelineError])
def test_the_clone_is_a_repository_with_the_files_and_is_gone_afterwards(folder: Path, error):
    with pytest.raises(error), sandbox_clone(["sub/a.txt"], needed_bytes=0) as clone:
        assert (clone / "sub/a.txt").read_text("utf-8") == "a"
        assert clone.is_relative_to(folder)
        listed = subprocess.run(["git", "ls-files"], cwd=clone, capture_output=True, text=True, check=True).stdout
        assert "sub/a.txt" in listed
        raise error
    assert list(folder.iterdir()) == []


def test_nothing_in_the_environment_leads_out_of_the_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    outward = {"DVC_ROOT": "/r", "DVC_EXP_NAME": "e", "GIT_DIR": "/g", "MLFLOW_TRACKING_URI": "http://secret@h"}
    for name, value in {**outward, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    found = sandbox_env(tmp_path / "clone")
    assert not set(outward.values()) & set(found.values())
    assert found["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path / 'clone' / 'mlflow.db'}"
    assert found["DVC_SITE_CACHE_DIR"].startswith(str(tmp_path))
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert found["OMP_NUM_THREADS"] == "1"


def test_all_processes_of_a_repeat_end_together(tmp_path: Path):
    """DVC's own end does not end its stage."""
    beat = tmp_path / "beat"
    script = f"while true; do date >> {beat}; sleep 0.02; done"
    process = subprocess.Popen(["sh", "-c", f"sh -c '{script}' & sleep 60"], process_group=0)
    while not beat.exists():
        time.sleep(0.02)
    sandbox._kill_group(process, patience_seconds=1)
    size = beat.stat().st_size
    time.sleep(0.2)
    assert process.returncode is not None
    assert beat.stat().st_size == size
