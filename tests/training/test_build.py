"""A training at step 0: its rows, schedule and initial weights, drawn from the seed or read from init_from."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from reprogpt.distributed.process_group import SINGLE_PROCESS
from reprogpt.errors import DataError, DeviceError, ParamsError
from reprogpt.model.gpt2_format import load_model, save_model
from reprogpt.numerics.device import Numerics
from reprogpt.params.train import TrainParams
from reprogpt.training import build
from reprogpt.training.build import Training, training_from_ids
from reprogpt.training.loop import train
from reprogpt.training.randomness import BookRandomness, IndependentRandomness
from reprogpt.training.run_dir import changes_since_interrupted, lock_run_dir
from reprogpt.training.schedule import Plan
from tests.tiny import CPU, PARAMS, tiny_model, tiny_training, weights_of

POLICIES = ("independent", "book")
INPUTS = {"cmd": "python -m stages.train", "deps": {}, "params": {"init_from": "start"}}


def training_on(num_train: int, num_val: int, *, prompt: tuple[int, ...] = (1,), **changes: object) -> Training:
    """A training on the tokens 0, 1, 2, … of both splits."""
    train, val = (np.arange(n, dtype=np.uint16) for n in (num_train, num_val))
    params = TrainParams(**PARAMS | changes)
    return training_from_ids(train, val, prompt=list(prompt), params=params, numerics=CPU)


def test_training_rows_start_every_stride_and_validation_rows_every_context_length() -> None:
    training = training_on(33, 25, stride=4)
    assert training.train_rows.inputs[:][:, 0].tolist() == [0, 4, 8, 12, 16, 20, 24]
    assert training.val_rows.inputs[:][:, 0].tolist() == [0, 8, 16]
    assert training.plan == Plan(3, 6, 1, decay_start=1, first_clipped_step=1)


def test_a_training_starts_at_step_0_with_the_seeds_weights() -> None:
    training = training_on(33, 25, seed=7)
    assert training.step == 0
    assert weights_of(training.model) == weights_of(tiny_model(seed=7))
    assert weights_of(training.model) != weights_of(training_on(33, 25, seed=8).model)


def test_weights_do_not_depend_on_what_was_drawn_before() -> None:
    first = tiny_training()
    torch.rand(5)
    assert weights_of(tiny_training().model) == weights_of(first.model)


def test_both_policies_start_from_the_same_weights() -> None:
    book, independent = tiny_training(random_order="book"), tiny_training(random_order="independent")
    assert isinstance(book.randomness, BookRandomness) and isinstance(independent.randomness, IndependentRandomness)
    assert weights_of(book.model) == weights_of(independent.model)


def test_the_model_uses_the_policys_dropout() -> None:
    for random_order in ("book", "independent"):
        training = tiny_training(random_order=random_order)
        assert training.model.dropout == training.randomness.dropout
        assert training.model.trf_blocks[1].att.dropout == training.randomness.dropout


def test_the_optimizer_decays_all_parameters() -> None:
    training = tiny_training(weight_decay=0.25)
    [group] = training.optimizer.param_groups
    assert group["weight_decay"] == 0.25
    assert len(group["params"]) == len(list(training.model.parameters()))
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)


def test_with_decay_matrices_only_neither_biases_nor_norms_decay() -> None:
    training = tiny_training(weight_decay=0.25, decay_matrices_only=True)
    decay = {
        parameter: group["weight_decay"] for group in training.optimizer.param_groups for parameter in group["params"]
    }
    for name, parameter in training.model.named_parameters():
        assert decay[parameter] == (0.0 if "norm" in name or name.endswith("bias") else 0.25), name


@pytest.mark.parametrize(("num_train", "num_val", "split"), [(8, 25, "training"), (33, 8, "validation")])
def test_the_split_that_is_too_short_is_named(num_train: int, num_val: int, split: str) -> None:
    with pytest.raises(DataError, match=f"^{split} text: 8 tokens cannot fill one row"):
        training_on(num_train, num_val)


def test_too_few_rows_for_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="gives 4 rows, fewer than batch_size=5"):
        training_on(33, 25, batch_size=5)


def test_a_prompt_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match="start_context holds token id 64, but vocab_size=64"):
        training_on(33, 25, prompt=(3, 64, 5))


def test_compile_is_refused_on_the_cpu() -> None:
    with pytest.raises(
        DeviceError, match=r"compile: true needs a GPU; .* differ from run to run. Set compile to false"
    ):
        tiny_training(compile=True)


def test_on_the_cpu_metrics_are_copied_at_every_step() -> None:
    assert tiny_training().log_interval == 1


@pytest.mark.parametrize(("device", "log_interval", "has_context"), [("cuda", 16, False), ("mps", 16, True)])
@pytest.mark.parametrize("random_order", POLICIES)
def test_on_a_gpu_metrics_are_copied_together_and_masks_are_restored_by_torch_where_it_can(
    device: str, log_interval: int, has_context: bool, random_order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model stays on the CPU here. On the CPU and mps the policy restores the masks of recomputed blocks."""
    monkeypatch.setattr(build, "shard_model", lambda *_: None)
    params = TrainParams(**PARAMS | {"activation_checkpointing": True, "random_order": random_order})
    ids = np.arange(33, dtype=np.uint16)
    numerics = Numerics(torch.device(device), "fp32", "torch")
    training = training_from_ids(ids, ids, prompt=[1], params=params, numerics=numerics)
    assert training.log_interval == log_interval
    assert training.model.activation_checkpointing
    context = training.model.recompute_context
    assert context == (training.randomness.recompute_context if has_context else None)


@pytest.mark.parametrize(
    ("changes", "is_bound"),
    [
        ({"batch_size": 16, "context_length": 256}, True),
        ({"batch_size": 17, "context_length": 256}, False),
        ({"batch_size": 16, "context_length": 256, "accumulate": 2}, False),
    ],
)
def test_cuda_graphs_are_for_small_batches_in_one_part(changes: dict[str, int], is_bound: bool) -> None:
    assert build._is_launch_bound(TrainParams(**PARAMS | changes), SINGLE_PROCESS) is is_bound
    two_processes = dataclasses.replace(SINGLE_PROCESS, size=2)
    assert not build._is_launch_bound(TrainParams(**PARAMS | changes), two_processes)


def test_size_is_the_plan_and_the_number_of_parameters() -> None:
    """Rows: 11, of which 2 a step. Parameters: (64 + 8 + 64) x 32, two blocks of 12 x 32^2 + 10 x 32, and 2 x 32."""
    num_parameters = (64 + 8 + 64) * 32 + 2 * (12 * 32**2 + 10 * 32) + 2 * 32
    assert tiny_training().size == {
        "steps_per_epoch": 5,
        "total_steps": 10,
        "warmup_steps": 2,
        "num_parameters": num_parameters,
    }


# init_from


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two GPT-2 directories: `start`, written by save_model, and `gpt2`, by transformers."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "start", tiny_model(seed=9))
    config = GPT2Config(vocab_size=64, n_positions=8, n_embd=32, n_head=4, n_layer=2, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "dvc.yaml").write_text("stages:\n  train:\n    cmd: python -m stages.train\n    outs: [model]\n")
    return tmp_path


def train_to_the_end(**changes: Any) -> tuple[list[bytes], str]:
    """Weights and records of a whole training."""
    training = tiny_training(**changes)
    records = repr(list(train(training)))
    return weights_of(training.model), records


@pytest.mark.parametrize("random_order", POLICIES)
def test_with_init_from_a_training_starts_with_the_weights_of_the_folder(root: Path, random_order: str) -> None:
    training = tiny_training(init_from="start", random_order=random_order)
    assert weights_of(training.model) == weights_of(load_model(Path("start")))
    assert training.step == 0 and training.model.training
    [group] = training.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in training.model.parameters()]


@pytest.mark.parametrize("random_order", POLICIES)
def test_with_init_from_nothing_but_the_weights_is_drawn_otherwise(root: Path, random_order: str) -> None:
    """The seed's own weights, read from a folder, train to the same bits as without init_from."""
    save_model(root / "drawn", tiny_training().model)
    assert train_to_the_end(init_from="drawn", random_order=random_order) == train_to_the_end(random_order=random_order)


@pytest.mark.parametrize("init_from", ["start", "gpt2"])
def test_two_trainings_from_one_folder_end_in_the_same_bits(root: Path, init_from: str) -> None:
    first = train_to_the_end(init_from=init_from)
    assert train_to_the_end(init_from=init_from) == first
    assert train_to_the_end()[0] != first[0]


def run_dir_of(training: Training) -> Path:
    """Its run directory, with a checkpoint of an interrupted training."""
    with lock_run_dir(INPUTS, {"threads": "1"} | training.initial_weights_tags) as run_dir_lock:
        assert run_dir_lock.run_dir is not None
        (run_dir_lock.run_dir / "checkpoint-a.json").write_text("{}")
    return run_dir_lock.run_dir


def test_other_weights_in_the_same_folder_are_another_training(root: Path) -> None:
    first = tiny_training(init_from="start")
    assert run_dir_of(tiny_training(init_from="start")) == run_dir_of(first)
    save_model(root / "start", tiny_model(seed=10))
    second = tiny_training(init_from="start")
    assert run_dir_of(second) != run_dir_of(first)
    save_model(root / "start", tiny_model(seed=11))
    third = tiny_training(init_from="start").initial_weights_tags
    with lock_run_dir(INPUTS, {"threads": "1"} | third) as run_dir_lock:
        [change] = changes_since_interrupted(run_dir_lock)
    assert change.startswith("started_from_sha256: ") and change.endswith(f" -> {third['started_from_sha256']}")


def test_init_from_is_recorded_by_the_digest_of_its_weights(root: Path) -> None:
    assert tiny_training().initial_weights_tags == {}
    digest = tiny_training(init_from="start").initial_weights_tags["started_from_sha256"]
    assert tiny_training(init_from="start", init_from_sha256=digest).initial_weights_tags == {
        "started_from_sha256": digest
    }
    with pytest.raises(ParamsError, match=f"expected  init_from_sha256={'f' * 64}\n  got       {digest}"):
        tiny_training(init_from="start", init_from_sha256="f" * 64)


def test_init_from_of_another_size_than_params_yaml_is_refused(root: Path) -> None:
    with pytest.raises(ParamsError, match=r"n_layers: 3 in params\.yaml, but n_layer is 2"):
        tiny_training(init_from="start", n_layers=3)
