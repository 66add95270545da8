"""Batches of training rows: shards, and the copy of the next one ahead of its step."""

import numpy as np
import pytest
import torch

from reprogpt.data.windows import windows
from reprogpt.distributed.process_group import ProcessGroup
from reprogpt.training import batches
from reprogpt.training.batches import Batch, BatchLoader, SplitRows, to_device
from reprogpt.training.randomness import BookRandomness, IndependentRandomness, RandomnessPolicy
from reprogpt.training.schedule import Plan
from tests.tiny import CPU

# 11 rows of 4 tokens in batches of 2: 5 steps an epoch.
NUM_ROWS = 11
PLAN = Plan(steps_per_epoch=5, total_steps=15, warmup_steps=2, decay_start=2, first_clipped_step=2)
CUDA = torch.device("cuda")
POLICIES = [IndependentRandomness, BookRandomness]
SHARDS = [ProcessGroup(rank, 2).shard for rank in (0, 1)]


def loader_of(
    randomness: RandomnessPolicy, device: torch.device = CPU.device, shard: slice = slice(None)
) -> BatchLoader:
    ids = np.arange(4 * NUM_ROWS + 1, dtype=np.uint16)
    rows = SplitRows(*windows(ids, context_length=4, stride=4))
    return BatchLoader(rows, randomness, PLAN, batch_size=2, shard=shard, device=device)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first token of each batch that is copied to the GPU, whose tensors stay on the CPU here."""
    first_tokens: list[int] = []

    def copy(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device == CUDA:
            first_tokens.append(int(batch.inputs[0, 0]))
        return to_device(batch, CPU.device)

    monkeypatch.setattr(batches, "to_device", copy)
    return first_tokens


def run(loader: BatchLoader, randomness: RandomnessPolicy) -> list[list[int]]:
    """First tokens of each step's rows; as in a training, each epoch ends with an evaluation, which may draw."""
    randomness.seed_weights()
    seen = []
    for step in range(PLAN.total_steps):
        inputs, targets = loader.load(step)
        assert torch.equal(inputs + 1, targets)
        seen.append(inputs[:, 0].tolist())
        loader.prefetch(step + 1)
        if (step + 1) % PLAN.steps_per_epoch == 0:
            randomness.evaluation_rows(NUM_ROWS)
    return seen


def test_take_gives_rows_with_their_targets() -> None:
    rows = Batch(np.array([[1], [2], [3]]), np.array([[2], [3], [4]]))
    for taken in (rows.take(np.array([2, 0])), rows.take(slice(0, 2))):
        assert (taken.targets - taken.inputs == 1).all()
    assert rows.take(np.array([2, 0])).inputs.tolist() == [[3], [1]]


@pytest.mark.parametrize("policy", POLICIES)
def test_prefetched_batches_are_those_that_are_loaded_without(
    policy: type[IndependentRandomness] | type[BookRandomness], copied: list[int]
) -> None:
    """The book's policy, too, whose permutation of an epoch is drawn after the evaluations of the one before."""
    ahead, plain = policy(123), policy(123)
    seen = run(loader_of(ahead, CUDA), ahead)
    assert len(copied) == PLAN.total_steps
    assert seen == run(loader_of(plain), plain)
    assert [rows[0] for rows in seen] == copied


def test_a_prefetched_batch_is_not_copied_again(copied: list[int]) -> None:
    loader = loader_of(IndependentRandomness(1), CUDA)
    loader.load(0)
    loader.prefetch(1)
    assert len(copied) == 2
    loader.load(1)
    assert len(copied) == 2
    loader.load(3)  # a step that was not prefetched
    assert len(copied) == 3


@pytest.mark.parametrize("step", [5, 10, 15, 16])
def test_the_first_batch_of_an_epoch_and_what_follows_the_last_are_not_prefetched(step: int, copied: list[int]) -> None:
    loader_of(IndependentRandomness(1), CUDA).prefetch(step)
    assert copied == []


def test_on_the_cpu_nothing_is_prefetched(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = loader_of(IndependentRandomness(1))
    monkeypatch.setattr(batches, "to_device", None)  # would fail
    loader.prefetch(1)


def test_shards_are_disjoint_parts_of_the_batch() -> None:
    randomness = IndependentRandomness(1)
    whole, first, second = (loader_of(randomness, shard=shard) for shard in (slice(None), *SHARDS))
    for step in range(PLAN.total_steps):
        joined = torch.cat([first.load(step)[0], second.load(step)[0]])
        assert torch.equal(joined, whole.load(step)[0])
        assert len(first.load(step)[1]) == 1


def test_on_the_cpu_a_batch_is_not_copied() -> None:
    batch = Batch(np.array([[1, 2]]), np.array([[2, 3]]))
    inputs, targets = to_device(batch, CPU.device)
    assert (inputs.data_ptr(), targets.data_ptr()) == (batch.inputs.ctypes.data, batch.targets.ctypes.data)
    assert inputs.dtype == torch.int64
