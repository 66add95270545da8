"""A training made ready."""

import numpy as np
import pytest
import torch

from reprogpt.errors import DataError, DeviceError
from reprogpt.params.train import TrainParams
from reprogpt.training.randomness import BookRandomness, IndependentRandomness
from reprogpt.training.schedule import Plan
from reprogpt.training.state import Batch, Training, training_from_ids
from tests.tiny import CPU, PARAMS, tiny_model, tiny_training, weights_of


def prepare(num_train: int, num_val: int, *, prompt: tuple[int, ...] = (1,), **changes: object) -> Training:
    """A training on the tokens 0, 1, 2, … of both splits."""
    train, val = (np.arange(n, dtype=np.uint16) for n in (num_train, num_val))
    params = TrainParams(**PARAMS | changes)
    return training_from_ids(train, val, prompt=list(prompt), params=params, numerics=CPU)


def test_training_rows_start_every_stride_and_validation_rows_every_context_length() -> None:
    training = prepare(33, 25, stride=4)
    assert training.train_rows.inputs[:, 0].tolist() == [0, 4, 8, 12, 16, 20, 24]
    assert training.val_rows.inputs[:, 0].tolist() == [0, 8, 16]
    assert training.plan == Plan(steps_per_epoch=3, total_steps=6, warmup_steps=1)


def test_rows_are_taken_with_their_targets() -> None:
    rows = Batch(np.array([[1], [2], [3]]), np.array([[2], [3], [4]]))
    for taken in (rows.take(np.array([2, 0])), rows.take(slice(0, 2))):
        assert (taken.targets - taken.inputs == 1).all()
    assert rows.take(np.array([2, 0])).inputs.tolist() == [[3], [1]]


def test_a_training_begins_at_step_0_with_the_seeds_weights() -> None:
    training = prepare(33, 25, seed=7)
    assert training.step == 0
    assert weights_of(training.model) == weights_of(tiny_model(seed=7))
    assert weights_of(training.model) != weights_of(prepare(33, 25, seed=8).model)


def test_weights_do_not_depend_on_what_was_drawn_before() -> None:
    first = tiny_training()
    torch.rand(5)
    assert weights_of(tiny_training().model) == weights_of(first.model)


def test_both_orders_start_from_the_same_weights() -> None:
    book, independent = tiny_training(random_order="book"), tiny_training(random_order="independent")
    assert isinstance(book.order, BookRandomness) and isinstance(independent.order, IndependentRandomness)
    assert weights_of(book.model) == weights_of(independent.model)


def test_the_model_drops_out_by_the_order() -> None:
    for random_order in ("book", "independent"):
        training = tiny_training(random_order=random_order)
        assert training.model.dropout == training.randomness.dropout
        assert training.model.trf_blocks[1].att.dropout == training.randomness.dropout  # type: ignore[union-attr]


def test_the_optimizer_decays_all_parameters() -> None:
    training = tiny_training(weight_decay=0.25)
    [group] = training.optimizer.param_groups
    assert group["weight_decay"] == 0.25
    assert len(group["params"]) == len(list(training.model.parameters()))


@pytest.mark.parametrize(("num_train", "num_val", "split"), [(8, 25, "training"), (33, 8, "validation")])
def test_the_split_that_is_too_short_is_named(num_train: int, num_val: int, split: str) -> None:
    with pytest.raises(DataError, match=f"^{split} text: 8 tokens cannot fill one row"):
        prepare(num_train, num_val)


def test_too_few_rows_for_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="gives 4 rows, fewer than batch_size=5"):
        prepare(33, 25, batch_size=5)


def test_a_prompt_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match="start_context holds token id 64, but vocab_size=64"):
        prepare(33, 25, prompt=(3, 64, 5))


def test_compiling_is_refused_on_the_cpu() -> None:
    with pytest.raises(
        DeviceError, match=r"compile: true is for a GPU; .* differ from run to run .* Set compile to false"
    ):
        tiny_training(compile=True)


def test_the_cpus_numbers_are_fetched_step_by_step() -> None:
    assert tiny_training().log_interval == 1


def test_its_extent_is_its_steps_and_its_weights():
    """Batch: 11, of which 2 a step. Weights: (64 + 8 + 64) x 32, two blocks of 12 x 32^2 + 10 x 32, and 2 x 32."""
    weights = (64 + 8 + 64) * 32 + 2 * (12 * 32**2 + 10 * 32) + 2 * 32
    assert tiny_training().extent == {
        "steps_per_epoch": 5,
        "total_steps": 10,
        "warmup_steps": 2,
        "num_parameters": weights,
    }
