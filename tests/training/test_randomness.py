"""The two randomness policies."""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from reprogpt.training.randomness import (
    BookRandomness,
    IndependentRandomness,
    RandomnessPolicy,
    needs_recompute_context,
)

POLICIES = [IndependentRandomness, BookRandomness]
ONES = torch.ones(1000)


def mask(policy: RandomnessPolicy, step: int) -> list[float]:
    policy.begin_step(step)
    return policy.dropout(ONES, 0.1).tolist()


# independent


def test_a_mask_is_the_same_whatever_was_drawn_before() -> None:
    fresh, used = IndependentRandomness(123), IndependentRandomness(123)
    used.training_rows(0, 18)
    used.evaluation_rows(18)
    mask(used, 3)
    mask(used, 9)
    torch.rand(5)
    np.random.random(5)
    assert mask(used, 7) == mask(fresh, 7)


def test_masks_of_other_steps_seeds_and_layers_differ() -> None:
    policy = IndependentRandomness(123)
    masks = [mask(policy, 0), mask(policy, 1), mask(IndependentRandomness(124), 0)]
    policy.begin_step(0)
    policy.dropout(ONES, 0.1)
    masks.append(policy.dropout(ONES, 0.1).tolist())
    assert len({tuple(values) for values in masks}) == 4


def test_without_begin_step_the_masks_are_those_of_step_0() -> None:
    assert IndependentRandomness(123).dropout(ONES, 0.1).tolist() == mask(IndependentRandomness(123), 0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_share_of_the_entries_is_zeroed_and_the_mean_is_kept(rate: float) -> None:
    policy = IndependentRandomness(123)
    dropped = policy.dropout(torch.full((200_000,), 3.0), rate)
    assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=0.005)
    assert dropped.mean().item() == pytest.approx(3.0, rel=0.02)
    [scaled] = set(dropped[dropped != 0].tolist())
    assert scaled == pytest.approx(3 / (1 - rate), rel=1e-4)


def test_rate_and_scale_fit_each_other_exactly() -> None:
    # 0.1 of 65536 is 6553.6, rounded to 6554
    dropped = IndependentRandomness(1).dropout(ONES, 0.1).tolist()
    assert set(dropped) == {0.0, float(np.float32(65536 / (65536 - 6554)))}


def test_entries_are_zeroed_independently_of_their_neighbors() -> None:
    dropped = IndependentRandomness(123).dropout(torch.ones(100_000), 0.5) == 0
    for distance in (1, 2, 3, 4, 8):
        both = (dropped[distance:] & dropped[:-distance]).float().mean().item()
        assert both == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3, 5), (4, 4)])
def test_dropout_keeps_shape_and_dtype(shape: tuple[int, ...]) -> None:
    policy = IndependentRandomness(123)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        dropped = policy.dropout(torch.ones(shape, dtype=dtype), 0.5)
        assert (dropped.shape, dropped.dtype) == (torch.Size(shape), dtype)


def test_a_rate_just_below_one_gives_finite_values() -> None:
    assert IndependentRandomness(123).dropout(ONES, 1 - 1e-9).isfinite().all()


def test_rate_zero_changes_nothing_and_draws_nothing() -> None:
    policy = IndependentRandomness(123)
    assert torch.equal(policy.dropout(ONES * 3, 0.0), ONES * 3)
    assert policy.dropout(ONES, 0.1).tolist() == mask(IndependentRandomness(123), 0)


def test_gradients_pass_through_the_same_mask() -> None:
    values = torch.full((1000,), 2.0, requires_grad=True)
    dropped = IndependentRandomness(123).dropout(values, 0.1)
    torch.autograd.backward(dropped.sum())
    assert values.grad is not None
    assert torch.equal(values.grad * 2, dropped)


def test_a_gpus_generator_is_seeded_from_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU draws can't be tested without one; that its generator is reseeded at every step can."""
    seeds: list[int] = []
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(manual_seed=seeds.append))

    def seeds_of(seed: int, *steps: int) -> list[int]:
        seeds.clear()
        policy = IndependentRandomness(seed, torch.device("cuda"))
        for step in steps:
            policy.begin_step(step)
        return list(seeds)

    first = seeds_of(123, 7, 8)
    assert len(set(first + seeds_of(124, 7))) == 3
    assert seeds_of(123, 8, 7) == first[::-1]
    assert all(0 <= seed < 2**63 for seed in first)


def test_each_epoch_visits_every_row_once_in_an_order_of_its_own() -> None:
    policy = IndependentRandomness(123)
    epochs = [policy.training_rows(epoch, 50).tolist() for epoch in range(3)]
    assert all(sorted(rows) == list(range(50)) for rows in epochs)
    assert len({tuple(rows) for rows in [*epochs, list(range(50))]}) == 4


def test_an_epochs_permutation_is_a_function_of_seed_and_epoch() -> None:
    used, fresh = IndependentRandomness(123), IndependentRandomness(123)
    used.training_rows(0, 50)
    mask(used, 4)
    torch.rand(5)
    assert used.training_rows(2, 50).tolist() == fresh.training_rows(2, 50).tolist()
    assert IndependentRandomness(124).training_rows(2, 50).tolist() != fresh.training_rows(2, 50).tolist()


def test_rows_and_masks_of_the_same_number_come_from_generators_of_their_own() -> None:
    policy = IndependentRandomness(123)
    policy.begin_step(5)
    masks_generator = np.random.Generator(policy._dropout_generator)
    assert policy.training_rows(5, 50).tolist() != masks_generator.permutation(50).tolist()


def test_evaluation_reads_rows_in_file_order() -> None:
    assert IndependentRandomness(123).evaluation_rows(4).tolist() == [0, 1, 2, 3]


def test_the_independent_policy_uses_no_global_generator_but_for_the_weights() -> None:
    torchs, numpys = torch.get_rng_state(), str(np.random.get_state())
    policy = IndependentRandomness(123)
    mask(policy, 3)
    policy.training_rows(0, 18)
    policy.evaluation_rows(18)
    assert torch.equal(torch.get_rng_state(), torchs)
    assert str(np.random.get_state()) == numpys


def test_the_independent_policy_has_no_state() -> None:
    policy = IndependentRandomness(123)
    mask(policy, 3)
    assert policy.state() == {}


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_are_drawn_from_the_seed(policy: Callable[[int], RandomnessPolicy]) -> None:
    policy(5).seed_weights()
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)


# book

NUM_ROWS, NUM_VAL_ROWS, BATCH = 11, 3, 2
Batches = list[list[int]]


def loaders_run(eval_freq: int) -> tuple[Batches, list[torch.Tensor]]:
    """Three epochs over real DataLoaders as the book runs them: the batches seen, the dropout masks drawn."""
    train = DataLoader(TensorDataset(torch.arange(NUM_ROWS)), batch_size=BATCH, shuffle=True, drop_last=True)
    val = DataLoader(TensorDataset(torch.arange(NUM_VAL_ROWS)), batch_size=BATCH)
    seen, masks, step = [], [], 0
    torch.manual_seed(123)
    for _ in range(3):
        for (batch,) in train:
            seen.append(batch.tolist())
            masks.append(functional.dropout(ONES, 0.1))
            if eval_freq and step % eval_freq == 0:
                seen.append(next(iter(train))[0].tolist())
                next(iter(val))
            step += 1
    return seen, masks


def policy_run(eval_freq: int) -> tuple[Batches, list[torch.Tensor]]:
    """The same with BookRandomness."""
    policy = BookRandomness(123)
    policy.seed_weights()
    seen, masks = [], []
    for step in range(3 * (NUM_ROWS // BATCH)):
        epoch, position = divmod(step, NUM_ROWS // BATCH)
        policy.begin_step(step)
        seen.append(policy.training_rows(epoch, NUM_ROWS)[position * BATCH :][:BATCH].tolist())
        masks.append(policy.dropout(ONES, 0.1))
        if eval_freq and step % eval_freq == 0:
            seen.append(policy.evaluation_rows(NUM_ROWS)[:BATCH].tolist())
    return seen, masks


@pytest.mark.parametrize("eval_freq", [0, 1, 2, 5])
def test_the_book_policy_draws_as_real_loaders_on_the_global_generator_do(eval_freq: int) -> None:
    (batches, masks), (their_batches, their_masks) = policy_run(eval_freq), loaders_run(eval_freq)
    assert batches == their_batches
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(masks, their_masks, strict=True))


def test_with_the_book_policy_evaluating_more_often_changes_later_epochs() -> None:
    never, often = policy_run(0)[0], policy_run(1)[0][::2]
    assert never[0] == often[0]
    assert never[5:] != often[5:]


def test_the_book_policy_continues_from_its_state() -> None:
    policy, later = BookRandomness(123), BookRandomness(123)
    policy.seed_weights()
    policy.training_rows(0, NUM_ROWS)
    policy.dropout(ONES, 0.1)
    state = {name: tensor.clone() for name, tensor in policy.state().items()}

    def run_until(policy: BookRandomness) -> list[list[float]]:
        rows = [policy.training_rows(0, NUM_ROWS), policy.evaluation_rows(NUM_ROWS), policy.training_rows(1, NUM_ROWS)]
        return [array.tolist() for array in rows] + [policy.dropout(ONES, 0.1).tolist()]

    wanted = run_until(policy)
    torch.manual_seed(999)
    later.load_state(state)
    assert run_until(later) == wanted


# a GPU's generator


class CountingGenerator:
    """A device's module, as torch.mps, whose generator counts its draws. Its state is their number."""

    def __init__(self) -> None:
        self.state = 0

    def manual_seed(self, seed: int) -> None:
        self.state = seed

    def get_rng_state(self) -> torch.Tensor:
        return torch.tensor(self.state)

    def set_rng_state(self, state: torch.Tensor) -> None:
        self.state = int(state)

    def draw(self) -> int:
        self.state += 1
        return self.state


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> CountingGenerator:
    generator = CountingGenerator()
    monkeypatch.setattr(torch, "get_device_module", lambda device: generator)
    return generator


@pytest.mark.parametrize(("device", "is_needed"), [("cuda", False), ("mps", True), ("cpu", True)])
def test_only_cuda_needs_no_recompute_context(device: str, is_needed: bool) -> None:
    """torch restores CUDA's generators itself, and torch.compile can't trace a context of ours."""
    assert needs_recompute_context(torch.device(device)) is is_needed


@pytest.mark.parametrize("policy", [IndependentRandomness, BookRandomness])
@pytest.mark.parametrize("is_left_early", [False, True])
def test_on_mps_a_recomputation_draws_from_the_devices_generator_as_the_forward_pass(
    policy: type[IndependentRandomness] | type[BookRandomness], is_left_early: bool, generator: CountingGenerator
) -> None:
    randomness = policy(123, torch.device("mps"))
    randomness.begin_step(3)
    generator.draw()  # of an earlier block
    forward, recomputation = randomness.recompute_context()
    with forward:
        drawn = [generator.draw(), generator.draw()]
    generator.draw()  # of a later block
    present = generator.state
    again = []
    with contextlib.suppress(StopIteration), recomputation:  # torch leaves it by an exception when it has enough
        again = [generator.draw(), generator.draw()]
        if is_left_early:
            raise StopIteration
    assert again == drawn
    assert generator.state == present


def test_the_book_policy_keeps_the_devices_generator(generator: CountingGenerator) -> None:
    policy = BookRandomness(123, torch.device("mps"))
    generator.draw()
    state = policy.state()
    wanted = [generator.draw(), generator.draw()]
    generator.manual_seed(999)
    policy.load_state(state)
    assert [generator.draw(), generator.draw()] == wanted
    assert "device" not in BookRandomness(123).state()
