"""Continuing a prompt, token by token."""

from collections import Counter

import pytest
import torch

from reprogpt.model.generation import generate
from tests.tiny import model_with_odds, tiny_model

# Odds of the next token, whatever the tokens before it.
ODDS = {5: 9.0, 9: 4.0, 3: 1.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frequencies(temperature: float, top_k: int | None = None, draws: int = 1000) -> dict[int, float]:
    tokens = generate(model_with_odds(ODDS), [1], draws, temperature=temperature, top_k=top_k, generator=seeded())
    return {token: count / draws for token, count in Counter(tokens).items()}


def test_greedy_takes_the_argmax_of_the_full_forward_pass() -> None:
    model = tiny_model().eval()
    ids = [1, 2, 3]
    for token in generate(model, [1, 2, 3], 5):
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)
    assert len(ids) == 8


def test_greedy_is_the_same_every_time_and_draws_nothing() -> None:
    model = tiny_model()
    before = torch.get_rng_state()
    first = list(generate(model, [1, 2], 20))
    assert first == list(generate(model, [1, 2], 20))
    assert len(set(first)) > 1
    assert torch.equal(torch.get_rng_state(), before)


def test_only_the_last_context_length_tokens_are_seen() -> None:
    model = tiny_model()
    assert list(generate(model, list(range(50, 60)), 12)) == list(generate(model, list(range(52, 60)), 12))


def test_all_of_the_last_context_length_tokens_are_seen() -> None:
    model = tiny_model()
    continuations = {tuple(generate(model, [first, *range(53, 60)], 1)) for first in range(64)}
    assert len(continuations) > 1


def test_the_prompt_is_left_unchanged() -> None:
    prompt = [1, 2]
    list(generate(tiny_model(), prompt, 3))
    assert prompt == [1, 2]


def test_temperature_one_samples_by_the_odds() -> None:
    assert frequencies(1.0) == pytest.approx({5: 9 / 14, 9: 4 / 14, 3: 1 / 14}, abs=0.03)


def test_temperature_two_samples_by_the_square_roots_of_the_odds() -> None:
    assert frequencies(2.0) == pytest.approx({5: 3 / 6, 9: 2 / 6, 3: 1 / 6}, abs=0.03)


def test_top_k_keeps_the_odds_among_the_largest_logits() -> None:
    assert frequencies(1.0, top_k=2) == pytest.approx({5: 9 / 13, 9: 4 / 13}, abs=0.03)


def test_top_1_is_greedy_at_any_temperature() -> None:
    assert frequencies(100.0, top_k=1, draws=50) == {5: 1.0}


@pytest.mark.parametrize("top_k", [64, 1000])
def test_top_k_of_the_whole_vocabulary_or_more_leaves_all_tokens(top_k: int) -> None:
    model = tiny_model()
    whole, limited = (
        list(generate(model, [1], 20, temperature=1.0, top_k=k, generator=seeded())) for k in (None, top_k)
    )
    assert limited == whole


def test_draws_come_from_the_given_generator_and_no_other() -> None:
    model = tiny_model()
    before = torch.get_rng_state()
    first, again, other = (
        list(generate(model, [1], 20, temperature=1.0, generator=seeded(seed))) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("training", [False, True])
def test_dropout_is_off_and_the_mode_is_restored_afterwards(training: bool) -> None:
    model = tiny_model(drop_rate=0.9).train(training)
    tokens = list(generate(model, [1, 2], 10))
    assert model.training == model.trf_blocks[0].training == training
    assert tokens == list(generate(model.eval(), [1, 2], 10))


def test_the_mode_is_restored_if_the_caller_stops_early() -> None:
    model = tiny_model()
    tokens = generate(model, [1], 10)
    next(tokens)
    assert not model.training
    tokens.close()  # type: ignore[attr-defined]
    assert model.training


def test_a_stop_token_ends_the_text_and_is_not_part_of_it() -> None:
    model = tiny_model()
    drawn = list(generate(model, [1], 30, temperature=1.0, generator=seeded()))
    stop_token = drawn[12]
    expected = drawn[: drawn.index(stop_token)]
    assert list(generate(model, [1], 30, temperature=1.0, generator=seeded(), stop_token=stop_token)) == expected
    assert len(expected) < 30 and model.training


def test_generating_records_no_graph() -> None:
    model, recorded = tiny_model(), []
    model.final_norm.register_forward_hook(lambda module, inputs, output: recorded.append(output.requires_grad))
    list(generate(model, [1], 2))
    assert recorded == [False, False]
