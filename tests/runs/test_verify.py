"""The report of verify, on a pipeline small enough to see."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from reprogpt.runs.compare import Change
from reprogpt.runs.verify import (
    OutComparison,
    RunEnvironments,
    conclusion,
    explanation,
    obstacles,
    origins,
    survived,
    table,
)
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
WEIGHTS = OutComparison("train", "data/model", "1" * 32 + ".dir", "2" * 32 + ".dir")
TAGS = {"device": "cpu", "matmul": "onednn", "instruction_set": "AVX512", "torch": "2.9", "numpy": "2.0"} | {
    "threads": "2",
    "tiktoken": "0.14",
    "python": "3.11",
}


def obstacles_of(
    *rerun: str,
    lock: dict[str, Any] = LOCK,
    seed: int = 123,
    digest: Callable[[str], str | None] = FILES.get,
) -> dict[str, list[str]]:
    return obstacles(lock, STAGES, {"seed": seed}, digest, rerun)


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


def test_the_table_has_a_second_line_for_what_was_found() -> None:
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


def test_a_difference_begins_where_all_that_was_read_is_the_same() -> None:
    assert begins(("tokenize", "ids.npy"), ("train", "model"), ("plot", "png")) == ["tokenize"]
    assert begins(("train", "model"), ("plot", "png"), ("evaluate", "txt")) == ["train"]
    assert begins(("plot", "png"), ("evaluate", "txt")) == ["plot", "evaluate"]
    assert begins() == []
    same = OutComparison("train", "model", "a", "a")
    assert origins([same, OutComparison("plot", "png", "a", None)], STAGES) == ["plot"]


def explained(*stages: str, pins: Any = None, text: Any = None, **here: str) -> str:
    return "\n".join(explanation(stages, RunEnvironments(TAGS, {**TAGS, **here}, pins or [], text)))


def test_what_is_likelier_to_change_bits_comes_first() -> None:
    assert explained("train", python="3.12", numpy="2.1", torch="2.10", instruction_set="AVX2", device="cuda") == (
        "the difference begins at train\n"
        "this explains it (recorded -> here), the likeliest first\n"
        "  device: cpu -> cuda\n"
        "  instruction_set: AVX512 -> AVX2\n"
        "  torch: 2.9 -> 2.10\n"
        "  numpy: 2.0 -> 2.1\n"
        "  python: 3.11 -> 3.12"
    )


def test_what_seldom_changes_bits_is_not_said_to_explain_it() -> None:
    assert "this may explain it, though it seldom changes bits" in explained("train", threads="1")
    assert "this explains it" in explained("train", threads="1", torch="2.10")


def test_every_recorded_tag_of_the_environment_is_compared() -> None:
    assert set(ENVIRONMENT_TAGS) <= set(STAGE_DEPENDENCIES["train"])


def test_another_number_of_processes_explains_it() -> None:
    environments = RunEnvironments(TAGS | {"num_processes": "2"}, TAGS | {"num_processes": "4"})
    assert explanation(["train"], environments) == [
        "the difference begins at train",
        "this explains it (recorded -> here), the likeliest first",
        "  num_processes: 2 -> 4",
    ]


def test_evaluate_runs_in_one_process_whatever_trained_the_weights() -> None:
    environments = RunEnvironments(TAGS | {"num_processes": "2"}, TAGS)
    assert survived(["evaluate"], environments) == []
    assert "nothing explains it" in "\n".join(explanation(["evaluate"], environments))


CPU = {"cpu_vendor": "AuthenticAMD", "cpu_model": "AMD EPYC 7B13"}


def test_a_run_without_tags_of_its_cpu_is_not_said_to_differ_in_them() -> None:
    """As older runs."""
    assert "nothing explains it" in explained("train", **CPU)
    assert survived(["train"], RunEnvironments(TAGS, TAGS | CPU)) == []


def test_another_cpu_is_named_and_its_vendor_is_the_likelier_cause() -> None:
    recorded = {"cpu_vendor": "GenuineIntel", "cpu_model": "Intel Xeon"}
    lines = explanation(["train"], RunEnvironments(TAGS | recorded, TAGS | CPU))
    assert lines[1:] == [
        "this explains it (recorded -> here), the likeliest first",
        "  cpu_vendor: GenuineIntel -> AuthenticAMD",
        "  cpu_model: Intel Xeon -> AMD EPYC 7B13",
    ]


@pytest.mark.parametrize("stage", ["train", "tokenize", "plot"])
def test_without_a_difference_that_can_matter_it_is_a_bug_or_the_hardware(stage: str) -> None:
    assert explained(stage).endswith("so this is a bug, or faulty hardware")
    assert "nothing explains it" in explained("tokenize", instruction_set="AVX2")  # tokens are made without torch
    assert "instruction_set: AVX512 -> AVX2" in explained("tokenize", "train", instruction_set="AVX2")


def test_a_pinned_version_stands_for_the_recorded_one_where_the_run_does_not_tell() -> None:
    pins = [Change(name, "1", "2") for name in ("aiohttp", "torch", "Pillow", "matplotlib")]
    assert explained("plot", pins=pins).endswith("first\n  matplotlib: 1 (pinned) -> 2\n  Pillow: 1 (pinned) -> 2")
    assert "nothing explains it" in explained("train", pins=pins)
    assert "nothing explains it" in explained("split", pins=pins)


def test_an_environment_that_is_not_known_is_said_not_to_be() -> None:
    text = "\n".join(explanation(["train"], RunEnvironments(None, TAGS)))
    assert "no MLflow run in this store trained the recorded weights, so their environment is\nknown only" in text
    assert "  device cpu, matmul onednn, instruction_set AVX512, torch 2.9" in text
    assert "bug" not in text and "explain" not in text
    text = "\n".join(explanation(["train"], RunEnvironments(None, TAGS, [Change("torch", "2.8", "2.9")])))
    assert "this explains it" in text and "  torch: 2.8 (pinned) -> 2.9\n" in text
    assert "their environment is\nknown only" in text


def test_another_text_explains_it_before_anything_else() -> None:
    text = explained("fetch", text=Change("corpus", None, "data/offline/b.txt (sha256 12)"), instruction_set="AVX2")
    assert text == (
        "the difference begins at fetch\n"
        "another text was read (recorded -> here)\n"
        "  corpus: not known -> data/offline/b.txt (sha256 12)"
    )


def test_a_result_that_survived_another_environment_says_so() -> None:
    older = RunEnvironments(TAGS, {**TAGS, "instruction_set": "AVX2"})
    assert survived(["tokenize", "train"], older)[1:] == ["  instruction_set: AVX512 -> AVX2"]
    assert survived(["tokenize"], older) == [], "which made no use of it"
    assert survived(["train"], RunEnvironments(TAGS, TAGS)) == survived(["train"], RunEnvironments(None, TAGS)) == []
