"""Trainings that start from other weights: the same draws, the same bits twice, and a record of which weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from reprogpt.errors import ParamsError
from reprogpt.model.hf_directory import load_model, save_model
from reprogpt.training.loop import train
from reprogpt.training.run_dir import changes_since_interrupted, lock_run
from reprogpt.training.state import Training
from tests.tiny import tiny_model, tiny_training, weights_of

ORDERS = ("independent", "book")
INPUTS = {"cmd": "python -m stages.train", "deps": {}, "params": {"init_from": "start"}}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `start` as another training's data/model and `gpt2` by transformers."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "start", tiny_model(seed=9))
    config = GPT2Config(vocab_size=64, n_positions=8, n_embd=32, n_head=4, n_layer=2, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "dvc.yaml").write_text("stages:\n  train:\n    cmd: python -m stages.train\n    outs: [model]\n")
    return tmp_path


def trained(**changes: Any) -> tuple[list[bytes], str]:
    """Weights and records of a whole training."""
    training = tiny_training(**changes)
    records = repr(list(train(training)))
    return weights_of(training.model), records


@pytest.mark.parametrize("random_order", ORDERS)
def test_a_training_begins_with_the_weights_of_the_folder(random_order: str) -> None:
    training = tiny_training(init_from="start", random_order=random_order)
    assert weights_of(training.model) == weights_of(load_model(Path("start")))
    assert training.step == 0 and training.model.training
    [group] = training.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in training.model.parameters()]


@pytest.mark.parametrize("random_order", ORDERS)
def test_the_seeds_own_weights_read_from_a_folder_train_to_the_seeds_own_end(root: Path, random_order: str) -> None:
    """So nothing but the weights is another: rows, dropout and evaluations are drawn as without init_from."""
    save_model(root / "drawn", tiny_training().model)
    assert trained(init_from="drawn", random_order=random_order) == trained(random_order=random_order)


@pytest.mark.parametrize("init_from", ["start", "gpt2"])
def test_two_trainings_from_one_folder_end_in_the_same_bits(init_from: str) -> None:
    first = trained(init_from=init_from)
    assert trained(init_from=init_from) == first
    assert trained()[0] != first[0]


def fingerprinted(training: Training) -> Path:
    """The folder where its checkpoints are kept."""
    with lock_run(INPUTS, {"threads": "1"} | training.initial_weights_tags) as held:
        assert held.folder is not None
        (held.folder / "checkpoint-a.json").write_text("{}")
    return held.folder


def test_other_weights_in_the_same_folder_are_another_training(root: Path) -> None:
    first = tiny_training(init_from="start")
    assert fingerprinted(tiny_training(init_from="start")) == fingerprinted(first)
    save_model(root / "start", tiny_model(seed=10))
    second = tiny_training(init_from="start")
    assert fingerprinted(second) != fingerprinted(first)
    save_model(root / "start", tiny_model(seed=11))
    third = tiny_training(init_from="start").initial_weights_tags
    with lock_run(INPUTS, {"threads": "1"} | third) as held:
        [said] = changes_since_interrupted(held)
    assert said.startswith("started_from_sha256: ") and said.endswith(f" -> {third['started_from_sha256']}")


def test_what_it_started_from_is_recorded_only_where_it_did() -> None:
    assert tiny_training().initial_weights_tags == {}
    digest = tiny_training(init_from="start").initial_weights_tags["started_from_sha256"]
    assert tiny_training(init_from="start", init_from_sha256=digest).initial_weights_tags == {
        "started_from_sha256": digest
    }
    with pytest.raises(ParamsError, match=f"expected  init_from_sha256={'f' * 64}\n  found     {digest}"):
        tiny_training(init_from="start", init_from_sha256="f" * 64)


def test_another_shape_than_params_yaml_says_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"n_layers: 3 in params\.yaml, but n_layer is 2"):
        tiny_training(init_from="start", n_layers=3)
