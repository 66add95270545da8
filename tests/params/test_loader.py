"""params.yaml: what is refused, and with which message."""

import itertools
import math
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from dvc.utils.serialize import modify_yaml

from reprogpt.cli.check import STAGES
from reprogpt.cli.check import check as check_command
from reprogpt.errors import ParamsError
from reprogpt.model.gpt import GPTConfig, GPTModel
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.fetch import FetchParams
from reprogpt.params.loader import (
    DVC_FILE,
    PARAMS_FILE,
    Params,
    known_keys,
    load_params,
    peek,
    problems_of,
    read_mapping,
)
from reprogpt.params.split import SplitParams
from reprogpt.params.train import MAX_CONTEXT_LENGTH, MAX_EMB_DIM, MAX_VOCAB_SIZE, TrainParams

ROOT = Path(__file__).parents[2]
check: Any = check_command.callback
# Valid, and independent of the values in the repository's params.yaml.
TEXT = """\
corpus_url: https://host/text.txt
corpus_sha256: ""
offline_corpus: ""
max_corpus_bytes: 1000
train_ratio: 0.9
encoding: gpt2
vocab_size: 50257
context_length: 256
emb_dim: 768
n_heads: 12
n_layers: 12
drop_rate: 0.1
qkv_bias: false
tie_weights: false
init_from: ""
init_from_sha256: ""
seed: 123
batch_size: 2
accumulate: 1
nproc_per_node: 1
stride: 256
n_epochs: 15
initial_lr: 0.00001
peak_lr: 0.0005
min_lr: 0.00001
warmup_ratio: 0.2
lr_decay: cosine
decay_ratio: 0.2
weight_decay: 0.1
decay_matrices_only: false
beta1: 0.9
beta2: 0.999
eps: 0.00000001
max_norm: 1.0
clip_from: warmup
orig_book_version: false
activation_checkpointing: false
compile: false
parallel: ddp
torchrun_args: ""
random_order: independent
eval_freq: 5
eval_iter: 1
keep: last
sample_freq: 1
save_seconds: 60.0
start_context: Every effort moves you
max_new_tokens: 50
temperature: 1.0
top_k: 25
stop_at_end_of_text: true
eval_max_tokens: 0
device: auto
precision: fp32
matmul: auto
numerics: native
"""

Values = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with TEXT as params.yaml and the pipeline's own dvc.yaml."""
    monkeypatch.chdir(tmp_path)
    DVC_FILE.write_bytes((ROOT / DVC_FILE).read_bytes())
    PARAMS_FILE.write_text(TEXT, encoding="utf-8")
    return tmp_path


@pytest.fixture
def values(folder: Path) -> Values:
    """The values of TEXT."""
    return read_mapping(PARAMS_FILE)


def replace(*changes: tuple[str, str]) -> None:
    """Replace text in params.yaml."""
    text = PARAMS_FILE.read_text("utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    PARAMS_FILE.write_text(text, encoding="utf-8")


def load_error(cls: type[Params] = TrainParams) -> str:
    """The message with which params.yaml in the current folder is refused."""
    with pytest.raises(ParamsError) as error:
        load_params(cls)
    return str(error.value)


@pytest.mark.parametrize("stage", STAGES)
def test_shipped_parameters_are_valid_for_every_stage(stage: type[Params]) -> None:
    assert problems_of(stage, read_mapping(ROOT / PARAMS_FILE)) == []


def test_shipped_keys_are_those_that_the_stages_list_and_the_classes_declare(values: Values) -> None:
    shipped = set(read_mapping(ROOT / PARAMS_FILE))
    assert shipped == set(values) == known_keys({}) == {key for stage in STAGES for key in stage.model_fields}


def test_loaded_values_are_those_of_the_file(folder: Path) -> None:
    assert load_params(SplitParams) == SplitParams(train_ratio=0.9)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"peak_lr": "fast"}, "peak_lr: 'fast' is not allowed; allowed: a number above 0"),
        ({"peak_lr": -0.1}, "peak_lr: -0.1 is not allowed; allowed: a number above 0"),
        ({"peak_lr": 0.0}, "peak_lr: 0.0 is not allowed; allowed: a number above 0"),
        ({"initial_lr": -0.1}, "initial_lr: -0.1 is not allowed; allowed: a number at least 0"),
        ({"min_lr": -0.1}, "min_lr: -0.1 is not allowed; allowed: a number at least 0"),
        ({"initial_lr": 0.1, "peak_lr": 0.01}, "peak_lr: 0.01 must be at least initial_lr=0.1"),
        ({"min_lr": 0.1, "peak_lr": 0.01}, "peak_lr: 0.01 must be at least min_lr=0.1"),
        ({"emb_dim": 770}, "n_heads: 12 must divide emb_dim=770 without remainder"),
        ({"accumulate": 0}, "accumulate: 0 is not allowed; allowed: a whole number at least 1"),
        ({"accumulate": 3}, "accumulate: 3 must divide batch_size=2 without remainder"),
        (
            {"nproc_per_node": 4},
            "nproc_per_node: 4 must divide batch_size / accumulate = 2 / 1 without remainder",
        ),
        (
            {"batch_size": 4, "accumulate": 2, "nproc_per_node": 4},
            "nproc_per_node: 4 must divide batch_size / accumulate = 4 / 2 without remainder",
        ),
        ({"nproc_per_node": 0}, "nproc_per_node: 0 is not allowed; allowed: a whole number at least 1"),
        ({"parallel": "fsdp", "compile": True}, "parallel: 'fsdp' needs compile: false; with compile: true use"),
        (
            {"nproc_per_node": 2, "random_order": "book", "matmul": "torch"},
            "random_order: 'book' needs nproc_per_node: 1 and torchrun_args: \"\"",
        ),
        (
            {"torchrun_args": "--nnodes=2", "random_order": "book", "matmul": "torch"},
            "random_order: 'book' needs nproc_per_node: 1 and torchrun_args: \"\"",
        ),
        ({"batch_size": 0}, "batch_size: 0 is not allowed; allowed: a whole number at least 1"),
        ({"batch_size": 2.0}, "batch_size: 2.0 is not allowed; allowed: a whole number at least 1"),
        ({"batch_size": "2"}, "batch_size: '2' is not allowed; allowed: a whole number at least 1"),
        ({"batch_size": None}, "batch_size: None is not allowed; allowed: a whole number at least 1"),
        ({"warmup_ratio": 1.5}, "warmup_ratio: 1.5 is not allowed; allowed: a number at least 0 and below 1"),
        ({"warmup_ratio": 1}, "warmup_ratio: 1 is not allowed; allowed: a number at least 0 and below 1"),
        ({"drop_rate": 1}, "drop_rate: 1 is not allowed; allowed: a number at least 0 and below 1"),
        (
            {"max_norm": 0},
            "max_norm: 0 is not allowed; allowed: a number above 0, or null: gradients are never clipped",
        ),
        ({"weight_decay": -1}, "weight_decay: -1 is not allowed; allowed: a number at least 0"),
        ({"seed": -1}, "seed: -1 is not allowed; allowed: a whole number at least 0"),
        ({"peak_lr": math.nan}, "peak_lr: nan is not allowed; allowed: a number above 0"),
        ({"max_norm": math.inf}, "max_norm: inf is not allowed; allowed: a number above 0"),
        ({"stride": 257}, "stride: 257 must be at most context_length=256"),
        ({"save_seconds": -0.5}, "save_seconds: -0.5 is not allowed; allowed: a number at least 0"),
        ({"eval_freq": -1}, "eval_freq: -1 is not allowed; allowed: a whole number at least 0"),
        ({"seed": True}, "seed: True is not allowed; allowed: a whole number"),
        ({"n_epochs": True}, "n_epochs: True is not allowed; allowed: a whole number"),
        ({"drop_rate": False}, "drop_rate: False is not allowed; allowed: a number"),
        ({"qkv_bias": 0}, "qkv_bias: 0 is not allowed; allowed: true or false"),
        ({"qkv_bias": "no"}, "qkv_bias: 'no' is not allowed; allowed: true or false"),
        ({"lr_decay": "exp"}, "lr_decay: 'exp' is not allowed; allowed: cosine or linear or wsd or none"),
        ({"decay_ratio": 0.0}, "decay_ratio: 0.0 is not allowed; allowed: a number above 0 and at most 1"),
        (
            {"decay_ratio": 0.81, "lr_decay": "wsd"},
            "decay_ratio: 0.81 must be at most 1 - warmup_ratio = 0.8: wsd decays after warmup",
        ),
        ({"beta1": 1.0}, "beta1: 1.0 is not allowed; allowed: a number at least 0 and below 1"),
        ({"beta2": -0.1}, "beta2: -0.1 is not allowed; allowed: a number at least 0 and below 1"),
        ({"eps": 0.0}, "eps: 0.0 is not allowed; allowed: a number at least 1e-37 and at most 1"),
        ({"keep": "first"}, "keep: 'first' is not allowed; allowed: last or best"),
        (
            {"keep": "best", "eval_freq": 0},
            "keep: 'best' needs eval_freq of at least 1: with 0 nothing is evaluated; or set it to last",
        ),
        ({"clip_from": "end"}, "clip_from: 'end' is not allowed; allowed: warmup or start"),
        (
            {"clip_from": "start", "orig_book_version": True},
            "orig_book_version: True needs clip_from: warmup; set it to false to clip from the start",
        ),
        ({"encoding": "p50k_base"}, "encoding: 'p50k_base' is not allowed; allowed: gpt2"),
        ({"start_context": ""}, "start_context: '' is not allowed; allowed: text of 1 to 100000 characters"),
    ],
)
def test_a_value_is_refused_by_key_value_and_what_is_allowed(values: Values, changes: Values, problem: str) -> None:
    [found] = problems_of(TrainParams, values | changes)
    assert found.startswith(problem)


@pytest.mark.parametrize("stage", [TrainParams, EvaluateParams])
def test_a_start_context_longer_than_a_prompt_may_be_is_refused_in_a_short_message(
    values: Values, stage: type[Params]
) -> None:
    [problem] = problems_of(stage, values | {"start_context": " " * 1_000_000})
    assert problem.startswith("start_context: '  ") and len(problem) < 300
    assert problem.endswith(" is not allowed; allowed: text of 1 to 100000 characters")
    assert problems_of(stage, values | {"start_context": " " * 100_000}) == []


@pytest.mark.parametrize("matmul", ["auto", "onednn"])
def test_the_book_policy_in_native_numerics_needs_torchs_matmul(values: Values, matmul: str) -> None:
    book = values | {"random_order": "book", "numerics": "native"}
    [problem] = problems_of(TrainParams, book | {"matmul": matmul})
    assert problem.startswith("random_order: 'book' needs numerics: auto or portable, or matmul: torch")
    assert f"now {matmul}" in problem
    assert problems_of(TrainParams, book | {"matmul": "torch"}) == []


@pytest.mark.parametrize("numerics", ["auto", "portable"])
def test_the_book_policy_is_allowed_in_portable_numerics(values: Values, numerics: str) -> None:
    assert problems_of(TrainParams, values | {"random_order": "book", "matmul": "auto", "numerics": numerics}) == []


@pytest.mark.parametrize("digest", ["A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_the_digest_of_weights_is_64_lower_case_digits_or_empty(values: Values, digest: str) -> None:
    [problem] = problems_of(TrainParams, values | {"init_from": "start", "init_from_sha256": digest})
    assert problem.startswith(f"init_from_sha256: {digest!r} is not allowed; allowed: 64 hexadecimal digits")
    assert problems_of(TrainParams, values | {"init_from": "start", "init_from_sha256": "a" * 64}) == []


def test_a_digest_of_no_weights_is_refused(values: Values) -> None:
    [problem] = problems_of(TrainParams, values | {"init_from_sha256": "a" * 64})
    assert (
        problem
        == f'init_from_sha256: \'{"a" * 64}\' pins nothing while init_from is "": set it to "", too, or name the folder'
    )


def test_a_folder_to_start_from_is_absolute_or_in_the_repository(values: Values) -> None:
    [problem] = problems_of(TrainParams, values | {"init_from": "../start"})
    assert problem == "init_from: '../start' must not leave the repository with ..; use an absolute path"
    for folder in ("start", "data/start", "/home/me/../start"):
        assert problems_of(TrainParams, values | {"init_from": folder}) == []


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5])
def test_a_split_leaves_text_on_both_sides(ratio: float) -> None:
    [problem] = problems_of(SplitParams, {"train_ratio": ratio})
    assert problem == f"train_ratio: {ratio} is not allowed; allowed: a number above 0 and below 1"


@pytest.mark.parametrize("digest", ["A" * 64, "a" * 63, "a" * 64 + "\n", "g" * 64])
def test_a_digest_is_64_lower_case_digits_or_empty(values: Values, digest: str) -> None:
    [problem] = problems_of(FetchParams, values | {"corpus_sha256": digest})
    assert problem.startswith(f"corpus_sha256: {digest!r} is not allowed; allowed: 64 hexadecimal digits in lower case")
    assert problems_of(FetchParams, values | {"corpus_sha256": ""}) == []


@pytest.mark.parametrize("url", ["ftp://host/text", "text.txt", "https://", ""])
def test_an_address_is_https_http_or_file(values: Values, url: str) -> None:
    [problem] = problems_of(FetchParams, values | {"corpus_url": url})
    assert problem == f"corpus_url: {url!r} is not allowed; allowed: an https, http or file URL"


@pytest.mark.parametrize(
    "changes",
    [
        {"drop_rate": 0},
        {"warmup_ratio": 0},
        {"initial_lr": 0, "min_lr": 0},
        {"initial_lr": 0.0005, "min_lr": 0.0005},
        {"peak_lr": 1},
        {"stride": 1},
        {"eval_freq": 0, "sample_freq": 0},
        {"weight_decay": 0},
        {"max_norm": None},
        {"lr_decay": "wsd", "decay_ratio": 0.8},
        {"lr_decay": "linear", "decay_ratio": 1},
        {"beta1": 0, "beta2": 0, "eps": 1},
        {"seed": 2**63 - 1},
    ],
)
def test_a_value_on_its_bound_is_allowed(values: Values, changes: Values) -> None:
    assert problems_of(TrainParams, values | changes) == []


def test_a_refused_bound_hides_no_other_problem_and_invents_none(values: Values) -> None:
    problems = problems_of(TrainParams, values | {"initial_lr": "low", "emb_dim": 0, "context_length": 0})
    assert [problem.split(":")[0] for problem in problems] == ["context_length", "emb_dim", "initial_lr"]


def test_an_unknown_key_is_refused_by_every_stage(folder: Path) -> None:
    replace(("seed: 123", "seed: 123\nmax_lr: 0.1"))
    for stage in STAGES:
        assert "  max_lr: unknown key; no stage in dvc.yaml reads it" in load_error(stage).splitlines()


def test_a_missing_key_is_named_with_what_is_allowed(folder: Path) -> None:
    replace(("batch_size:", "# batch_size:"))
    assert (
        "  batch_size: missing; allowed: a whole number at least 1 and at most 2147483647" in load_error().splitlines()
    )


def test_all_problems_of_a_stage_come_in_one_message(folder: Path) -> None:
    replace(("batch_size: 2", "batch_size: 0"), ("max_norm: 1.0", "max_norm: .inf"), ("seed: 123", "sead: 123"))
    lines = load_error().splitlines()
    assert lines[0] == "4 problems in params.yaml"
    assert [line.split(":")[0].strip() for line in lines[1:5]] == ["sead", "seed", "batch_size", "max_norm"]


def test_a_stage_ignores_the_values_of_other_stages(folder: Path) -> None:
    replace(("batch_size: 2", "batch_size: 0"))
    assert load_params(SplitParams).train_ratio == 0.9


def test_the_message_counts_its_problems(folder: Path) -> None:
    replace(("batch_size: 2", "batch_size: 0"))
    assert load_error().startswith("1 problem in params.yaml\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1", "params.yaml is not readable YAML: "),
        ("seed: 1\nseed: 2\n", 'params.yaml is not readable YAML: .*duplicate key "seed"'),
        ("\x00", "params.yaml is not readable YAML: "),
        ("- seed\n", "params.yaml must hold `key: value` lines, not list"),
        ("", "params.yaml must hold `key: value` lines, not NoneType"),
        ("seed", "params.yaml must hold `key: value` lines, not str"),
    ],
)
def test_a_file_that_is_not_a_yaml_mapping_is_refused(folder: Path, text: str, message: str) -> None:
    PARAMS_FILE.write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError, match=message):
        load_params(SplitParams)


def test_a_file_that_is_not_utf8_is_refused(folder: Path) -> None:
    PARAMS_FILE.write_bytes(b"start_context: caf\xe9\n")
    assert load_error().startswith("params.yaml is not readable YAML: ")


def test_a_folder_of_the_files_name_is_refused(folder: Path) -> None:
    PARAMS_FILE.unlink()
    PARAMS_FILE.mkdir()
    assert load_error() == "params.yaml can't be read: Is a directory"
    PARAMS_FILE.rmdir()
    PARAMS_FILE.write_text(TEXT, encoding="utf-8")
    DVC_FILE.unlink()
    DVC_FILE.mkdir()
    assert load_error() == "dvc.yaml can't be read: Is a directory"


def test_a_missing_file_names_the_folder_it_is_missing_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_error() == f"params.yaml is missing in {tmp_path}: run from the repository's root"


def test_dvc_writes_params_yaml_as_it_is_shipped(folder: Path) -> None:
    """So that `-S` changes the line of its key, and no other but the long address's."""
    shipped = (ROOT / PARAMS_FILE).read_text("utf-8")
    PARAMS_FILE.write_text(shipped, "utf-8")
    with modify_yaml(str(PARAMS_FILE)) as values:
        values["seed"] = 5
    written = PARAMS_FILE.read_text("utf-8").replace("corpus_url: \n  ", "corpus_url: ")
    changed = [line for line in written.splitlines() if line not in shipped.splitlines()]
    assert [line.split() for line in changed] == [["seed:", "5", "#", "whole", "number,", "at", "least", "0"]]


@pytest.mark.parametrize("number", ["1e-05", "1.0e-05", "0.00001"])
def test_a_small_number_is_a_number_however_dvc_writes_it(folder: Path, number: str) -> None:
    replace(("initial_lr: 0.00001", f"initial_lr: {number}"))
    assert load_params(TrainParams).initial_lr == 0.00001


@pytest.mark.parametrize("word", ["yes", "no", "on", "off"])
def test_a_yaml_1_1_truth_value_is_a_word(folder: Path, word: str) -> None:
    replace(("qkv_bias: false", f"qkv_bias: {word}"))
    assert f"qkv_bias: {word!r} is not allowed; allowed: true or false" in load_error()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("numerics: portable\n", "portable"),
        ("seed: 1\nnumerics: 'portable' # the same bits\n", "portable"),
        ("numerics: [1]\n", [1]),
        ("# numerics: portable\n", None),
        ("seed: 1\n", None),
        ("numerics: [\n", None),
        ("- numerics\n", None),
        ("", None),
    ],
)
def test_peek_reads_values_without_validating_them(folder: Path, text: str, value: object) -> None:
    PARAMS_FILE.write_text(text, encoding="utf-8")
    assert peek().get("numerics") == value


def test_peek_leaves_a_file_that_cannot_be_read_to_load_params(folder: Path) -> None:
    PARAMS_FILE.write_bytes(b"numerics: portable\n\xe9")
    assert peek() == {}
    PARAMS_FILE.unlink()
    assert peek() == {}
    PARAMS_FILE.mkdir()
    assert peek() == {}


def test_parameters_cannot_be_changed_after_loading(folder: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_params(SplitParams).train_ratio = 0.5


def test_a_key_that_two_stages_read_is_reported_once(folder: Path) -> None:
    replace(("seed: 123", "seed: -1"))
    with pytest.raises(ParamsError, match=r"^1 problem in") as error:
        check()
    assert str(error.value).count("seed: -1") == 1


def run_check(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "reprogpt", "check"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_check_reports_problems_of_several_stages_in_one_message_without_traceback(folder: Path) -> None:
    replace(("train_ratio: 0.9", "train_ratio: 9"), ("top_k: 25", "top_k: 0"), ("seed: 123", "sead: 123"))
    done = run_check(folder)
    assert done.returncode == 2
    assert "error: 4 problems in params.yaml" in done.stderr
    for problem in ("sead: unknown key", "train_ratio: 9 is", "seed: missing", "top_k: 0 is"):
        assert problem in done.stderr
    assert "Traceback" not in done.stderr


def test_check_passes_valid_parameters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    for variable in ("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(variable, "me@localhost")
    done = run_check(folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"params.yaml: {len(TEXT.splitlines())} keys, all within their ranges\n"


@pytest.mark.parametrize("url", ["https://me:hush@host/text", "http://me:hu/sh@host/", "https://hush@host/x"])
def test_a_password_in_corpus_url_is_refused_and_not_printed(url: str) -> None:
    (problem,) = [line for line in problems_of(FetchParams, {"corpus_url": url}) if line.startswith("corpus_url")]
    assert "dvc.lock would record" in problem
    assert "hush" not in problem and "hu/sh" not in problem


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"device": "cuda"}, "numerics: 'portable' needs device: auto or cpu (now cuda); or use numerics: native"),
        ({"precision": "bf16"}, "numerics: 'portable' needs precision: fp32 (now bf16); or use numerics: native"),
        ({"matmul": "onednn"}, "numerics: 'portable' needs matmul: auto (now onednn); or use numerics: native"),
        ({"nproc_per_node": 2}, "numerics: 'portable' needs nproc_per_node: 1 (now 2); or use numerics: native"),
    ],
)
def test_portable_numerics_are_refused_with_other_arithmetic(values: Values, changes: Values, problem: str) -> None:
    portable = values | {"numerics": "portable"}
    assert problems_of(TrainParams, portable) == []
    [found] = problems_of(TrainParams, portable | changes)
    assert found.startswith(problem)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("seed: " + "[" * 500, "params.yaml is not readable YAML: it is nested too deeply"),
        ("seed: " + "{a: " * 500, "params.yaml is not readable YAML: it is nested too deeply"),
        ("- " * 500 + "1", "params.yaml is not readable YAML: "),
        ("seed: " + "9" * 5000, "params.yaml is not readable YAML: "),
        ("seed: 0x" + "f" * 5000, "seed: a number of 20000 bits is not allowed"),
        ("seed: 2001-99-99", "params.yaml is not readable YAML: "),
        ("seed: !!timestamp x", "params.yaml is not readable YAML: "),
        ("seed: !!bool x", "params.yaml is not readable YAML: "),
        ("seed: !!int x", "params.yaml is not readable YAML: "),
        (f"seed: {'x' * 100_000}", "seed: 'xxx"),
        (f"{'x' * 900}: 1", "xxx"),
        ("? [a, b]\n: 1", "('a', 'b'): unknown key"),
        (
            "vocab_size: 1000000000000",
            "vocab_size: 1000000000000 is not allowed; allowed: a whole number at least 1 and",
        ),
    ],
)
def test_a_hostile_file_is_refused_with_a_short_message(folder: Path, line: str, problem: str) -> None:
    key = line.split(":")[0]
    PARAMS_FILE.write_text("".join(kept for kept in TEXT.splitlines(True) if not kept.startswith(f"{key}:")) + line)
    with pytest.raises(ParamsError) as error:
        check()
    assert problem in str(error.value)
    assert len(str(error.value)) < 2000


def test_aliases_of_aliases_are_refused_with_a_short_message(folder: Path) -> None:
    PARAMS_FILE.write_text(BOMB + TEXT.replace("seed: 123", "seed: *i"))
    message = load_error()
    assert "seed: [[[...], " in message
    assert len(message) < 4000


@pytest.mark.parametrize(
    ("written", "what"),
    [("seed\uff1a123", "a full-width colon"), ("seed:\u3000123", "a full-width space after the colon")],
)
def test_wide_punctuation_is_named_with_its_line(folder: Path, written: str, what: str) -> None:
    replace(("seed: 123", written))
    number = PARAMS_FILE.read_text("utf-8").splitlines().index(written) + 1
    with pytest.raises(ParamsError, match=f"line {number} has {what} .*; write seed: and a space"):
        load_params(FetchParams)


def test_a_path_as_corpus_url_is_answered_with_its_url(
    values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("私の本.txt").touch()
    own = {key: values[key] for key in FetchParams.model_fields}
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("私の本.txt", str(tmp_path / "私の本.txt"), "~/私の本.txt"):
        (problem,) = problems_of(FetchParams, own | {"corpus_url": path})
        url = problem.rpartition(" ")[2]
        assert "is a path; write it as a URL: file:///" in problem
        assert problems_of(FetchParams, own | {"corpus_url": url}) == []


@pytest.mark.parametrize(
    "key", ["vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "batch_size", "n_epochs"]
)
def test_a_size_that_no_tensor_has_is_refused_with_its_bound(values: Values, key: str) -> None:
    problems = problems_of(TrainParams, values | {key: 10**12})
    assert f"{key}: 1000000000000 is not allowed; allowed: a whole number at least 1 and at most " in problems[0]


def test_the_largest_model_can_be_described(values: Values) -> None:
    """Its tensors' numbers of bytes fit 64 bits: torch then says that there is no memory."""
    largest = {"vocab_size": MAX_VOCAB_SIZE, "context_length": MAX_CONTEXT_LENGTH, "emb_dim": MAX_EMB_DIM}
    own = {key: values[key] for key in TrainParams.model_fields}
    params = TrainParams(**own | largest | {"n_heads": 8, "n_layers": 1})
    with torch.device("meta"):
        model = GPTModel(GPTConfig(**{field.name: getattr(params, field.name) for field in fields(GPTConfig)}))
    assert max(parameter.nbytes for parameter in model.parameters()) < 2**63


def test_check_has_no_traceback_for_a_hostile_file(folder: Path) -> None:
    PARAMS_FILE.write_text("seed: " + "[" * 500)
    done = run_check(folder)
    assert done.returncode == 2
    assert "nested too deeply" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "parameter",
    [
        *("X-Amz-Signature", "x-amz-security-token", "X-Amz-Credential", "X-Goog-Signature", "AWSAccessKeyId"),
        *("sig", "token", "access_token", "private_token", "accessToken", "key", "api_key", "apikey", "x-api-key"),
        *("password", "passwd", "pwd", "secret", "client_secret", "auth", "authkey", "jwt", "%73ig", "resourcekey"),
    ],
)
@pytest.mark.parametrize(
    ("before", "place", "advice"),
    [
        ("?", "query", "REPROGPT_CORPUS_URL_QUERY"),
        ("?raw=1&", "query", "REPROGPT_CORPUS_URL_QUERY"),
        ("?raw=1;", "query", "REPROGPT_CORPUS_URL_QUERY"),
        ("#", "fragment", "never sent"),
        ("?raw=1#a&", "fragment", "never sent"),
    ],
)
def test_a_credential_in_a_urls_query_or_fragment_is_refused_and_not_printed(
    parameter: str, before: str, place: str, advice: str
) -> None:
    for scheme in ("https", "HTTP"):
        url = f"{scheme}://host/text.txt{before}{parameter}=hush&b=1"
        (problem,) = [line for line in problems_of(FetchParams, {"corpus_url": url}) if line.startswith("corpus_url")]
        assert f"in its {place} ({parameter}), which dvc.lock would record" in problem
        assert advice in problem
        assert "hush" not in problem


@pytest.mark.parametrize(
    "url",
    [
        "https://host/text?raw=1&X-Amz-Date=20260101&monkey=2&keyword=x&author=me&design=3&token=",
        "https://host/token=x/text",
        "file:///home/me/a?token=b#key=c/text",
    ],
)
def test_a_query_without_a_credential_is_allowed(values: Values, url: str) -> None:
    own = {key: values[key] for key in FetchParams.model_fields}
    assert problems_of(FetchParams, own | {"corpus_url": url}) == []
