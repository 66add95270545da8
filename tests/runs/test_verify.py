"""What verify refuses, and where a difference begins, on a pipeline small enough to see; and what it reads."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reprogpt.dvc.revisions import Workspace
from reprogpt.runs import verify
from reprogpt.runs.compare import Change
from reprogpt.runs.lineage import Link
from reprogpt.runs.verify import obstacles, origins
from reprogpt.tracking.log.environment import ENVIRONMENT_TAGS, STAGE_DEPENDENCIES

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
        "outs": [{"path": "ids.npy", "md5": "i0"}],
    },
    "train": {
        "cmd": "fit",
        "deps": [{"path": "ids.npy", "md5": "i0"}, {"path": "code.py", "md5": "c0"}],
        "params": {"params.yaml": {"seed": 123}},
        "outs": [{"path": "model", "md5": "m0.dir"}],
    },
}


def obstacles_of(
    *rerun: str,
    lock: dict[str, Any] = LOCK,
    seed: int = 123,
    digest: Callable[[str], str | None] = FILES.get,
) -> dict[str, list[str]]:
    class Given(Workspace):
        def digest(self, path: str) -> str | None:
            return digest(path)

    workspace = Given()
    workspace.lock, workspace.stages, workspace.params = lock, STAGES, {"seed": seed}
    return obstacles(workspace, rerun)


def test_a_workspace_as_recorded_can_be_rerun_whole_or_in_part() -> None:
    assert obstacles_of("tokenize", "train") == obstacles_of("tokenize") == obstacles_of("train") == {}


def test_data_that_the_rerun_makes_itself_may_be_altered_or_absent() -> None:
    assert obstacles_of("tokenize", "train", digest={**FILES, "ids.npy": "x", "model": "x"}.get) == {}
    assert obstacles_of("tokenize", "train", digest={"raw.txt": "r0", "code.py": "c0"}.get) == {}


def test_data_that_the_rerun_reads_must_be_here_as_recorded() -> None:
    assert obstacles_of("train", digest={**FILES, "ids.npy": "x"}.get) == {
        "dep ids.npy: other contents than recorded": ["train"]
    }
    assert obstacles_of("train", digest={"code.py": "c0"}.get) == {"dep ids.npy: not here": ["train"]}
    assert obstacles_of("tokenize", "train", digest={"code.py": "c0"}.get) == {"dep raw.txt: not here": ["tokenize"]}


def test_edited_code_and_parameters_are_obstacles_to_the_stages_that_read_them() -> None:
    edited = {**FILES, "code.py": "c1"}.get
    assert obstacles_of("tokenize", "train", seed=124, digest=edited) == {
        "dep code.py: other contents than recorded": ["train"],
        "param seed: 123 -> 124": ["train"],
    }
    assert obstacles_of("tokenize", seed=124, digest=edited) == {}


def test_a_stage_that_never_ran_is_an_obstacle() -> None:
    assert obstacles_of("tokenize", "train", lock={"tokenize": LOCK["tokenize"]}) == {
        "not in dvc.lock: it never ran": ["train"]
    }


def test_a_record_that_does_not_agree_with_itself_is_an_obstacle() -> None:
    lock = copy.deepcopy(LOCK)
    lock["tokenize"]["outs"][0]["md5"] = "x"
    assert obstacles_of("tokenize", "train", lock=lock) == {"dep ids.npy: other contents than recorded": ["train"]}


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
def test_another_definition_is_an_obstacle(change: dict[str, Any], obstacle: str) -> None:
    lock = {**LOCK, "tokenize": {**LOCK["tokenize"], **change}}
    assert obstacles_of("tokenize", lock=lock) == {obstacle: ["tokenize"]}


def begins(**outs: str) -> list[str]:
    """outs: stage -> its out that differs."""
    return origins({stage: [Link(out, "a", "b")] for stage, out in outs.items()}, STAGES)


def test_a_difference_begins_where_all_that_was_read_is_the_same() -> None:
    assert begins(tokenize="ids.npy", train="model", plot="png") == ["tokenize"]
    assert begins(train="model", plot="png", evaluate="txt") == ["train"]
    assert begins(plot="png", evaluate="txt") == ["plot", "evaluate"]
    assert begins() == []
    missing = {"train": [Link("model", "a", "a")], "plot": [Link("png", "a", None)]}
    assert origins(missing, STAGES) == ["plot"]


def test_every_recorded_tag_of_the_environment_is_compared() -> None:
    assert set(ENVIRONMENT_TAGS) <= set(STAGE_DEPENDENCIES["train"])


def test_installed_versions_are_compared_with_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "version", {"torch": "2.13.0+cpu", "numpy": "2.4.6"}.__getitem__)
    monkeypatch.setattr(verify, "PackageNotFoundError", KeyError)
    pins = "# pins\ntorch==2.13.0\nnumpy==2.4.7\nnvidia-cublas==13.0 ; platform_system\n"
    assert verify.unpinned_versions(pins) == [Change("numpy", "2.4.7", "2.4.6")]


def workspace(init_from: str = "") -> Workspace:
    """A workspace with sizes in dvc.lock and nothing else."""
    made = Workspace()
    made.lock = {
        "tokenize": {"deps": [{"path": "raw.txt"}], "outs": [{"path": "ids.npy", "size": 10}]},
        "train": {
            "deps": [{"path": "ids.npy", "size": 10}, {"path": "code.py", "size": 7}],
            "outs": [{"path": "model", "size": 100}],
        },
    }
    made.params = {"init_from": init_from}
    return made


def test_disk_space_is_needed_for_the_copies_of_outs_and_for_what_other_stages_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verify._needed_bytes(workspace(), ["tokenize", "train"]) == 3 * 110 + 7
    assert verify._needed_bytes(workspace(), ["train"]) == 3 * 100 + 10 + 7
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start").mkdir()
    (tmp_path / "start/model.safetensors").write_bytes(bytes(1000))
    assert verify._needed_bytes(workspace("start"), ["tokenize", "train"]) == 3 * 110 + 7 + 1000
