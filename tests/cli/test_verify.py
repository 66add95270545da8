"""The command verify: the stages that it takes, and what it prints of a rerun."""

from pathlib import Path
from typing import Any

import pytest

from reprogpt.cli import verify as command
from reprogpt.cli.verify import conclusion, explanation, survived, table
from reprogpt.params.loader import read_mapping
from reprogpt.runs.compare import Change
from reprogpt.runs.lineage import Link
from reprogpt.runs.results import COLUMNS
from reprogpt.runs.verify import STAGES, RunEnvironments
from reprogpt.runs.verify_row import RowRerun

TAGS = {"device": "cpu", "matmul": "onednn", "instruction_set": "AVX512", "torch": "2.9", "numpy": "2.0"} | {
    "threads": "2",
    "tiktoken": "0.14",
    "python": "3.11",
}


def test_the_command_line_offers_the_stages_of_dvc_yaml() -> None:
    assert list(STAGES) == list(read_mapping(Path(__file__).resolve().parents[2] / "dvc.yaml")["stages"])


def test_the_table_has_a_second_line_for_what_the_rerun_made() -> None:
    text = Link("data/corpus/train.txt", "a" * 32, "a" * 32)
    weights = Link("data/model", "1" * 32 + ".dir", "2" * 32 + ".dir")
    outs = {"split": [text], "train": [weights, Link("data/metrics/train.json", "b" * 32, None)]}
    lines = table(outs)
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
    assert conclusion(outs) == "NOT the same: 2 of 3 outs of 2 stages are not as dvc.lock records"
    one = {"split": [text], "train": [weights]}
    assert conclusion(one) == "NOT the same: 1 of 2 outs of 2 stages is not as dvc.lock records"
    same = "the same: all 2 outs of stage split have the digests that dvc.lock records"
    assert conclusion({"split": [text, text]}) == same


def test_a_row_is_announced_with_its_cost_and_each_value_is_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"overrides": "peak_lr=0.001", "seed": "3", "weights": "abcdef12" + "0" * 56, "commit": "c" * 40}
    environment = {"device": "cpu", "matmul": "portable", "torch": "2.9", "cpu_model": "EPYC", "threads": "2"}
    row = dict.fromkeys(COLUMNS, "") | named | environment | {"seconds": "1320"}
    links = [Link("final_val_loss", "6.5", "6.5"), Link("weights", named["weights"], named["weights"])]
    pins = [Change("numpy", "2.4.6", "2.4.5")]
    done = RowRerun(links, RunEnvironments(environment, environment | {"threads": "1"}, pins))
    monkeypatch.setattr(command, "rerun_row", lambda row: done)
    assert command._verify_row(row) == 0
    out, err = capsys.readouterr()
    assert err == (
        "row abcdef12 (peak_lr=0.001, seed 3) of commit cccccccccccc\n"
        "when it was recorded, it took 22 minutes on: EPYC, threads 2, matmul portable, torch 2.9\n"
    )
    assert out.splitlines() == [
        "  status    number                        in docs/results.csv (and found)",
        "",
        "row abcdef12",
        "  same      final_val_loss                6.5",
        f"  same      weights                       {named['weights']}",
        "",
        "the environment differs, which changed nothing (recorded -> here)",
        "  numpy: 2.4.6 (pinned) -> 2.4.5",
        "",
        "the same: all 2 values of row abcdef12 are identical to the bit",
    ]
    links[0] = Link("final_val_loss", "6.5", "6.25")
    assert command._verify_row(row) == 1
    out = capsys.readouterr().out
    assert "  DIFFERS   final_val_loss                6.5\n            found                         6.25\n" in out
    assert "the difference begins at evaluate\n" in out
    assert out.endswith("\nNOT the same: 1 of 2 values of row abcdef12\n")


def explained(*stages: str, pins: Any = None, text: Any = None, **here: str) -> str:
    return "\n".join(explanation(stages, RunEnvironments(TAGS, {**TAGS, **here}, pins or [], text)))


def test_the_processor_explains_nothing_in_portable_numerics() -> None:
    portable = TAGS | {"matmul": "portable"}
    other = portable | {"threads": "7", "instruction_set": "AVX2"}
    lines = explanation(["train"], RunEnvironments(portable, other))
    assert lines[1].startswith("nothing explains it")
    assert explanation(["train"], RunEnvironments(portable, TAGS))[2:] == ["  matmul: portable -> onednn"]


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
