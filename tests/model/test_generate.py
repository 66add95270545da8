"""Continuing a prompt, token by token."""

from collections import Counter
from typing import Any

import pytest
import torch

from reprogpt.model import generate as module
from reprogpt.model.generate import generate, generate_batch
from reprogpt.model.gpt import GPTModel
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


PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12, 13], list(range(20, 33))]  # of a context_length of 8


def batch(model: GPTModel, prompts: list[list[int]], max_new_tokens: int, **options: Any) -> list[list[int]]:
    """The continuation of each prompt."""
    continuations: list[list[int]] = [[] for _ in prompts]
    generators = options.pop("generators", [None] * len(prompts))
    for tokens in generate_batch(model, prompts, max_new_tokens, generators=generators, **options):
        for row, token in tokens.items():
            continuations[row].append(token)
    return continuations


@pytest.mark.parametrize("max_new_tokens", [1, 2, 5, 20])
def test_each_row_of_a_batch_is_continued_as_it_is_alone(max_new_tokens: int) -> None:
    """Of other lengths than its neighbors, within context_length and where it outgrows that."""
    model = tiny_model()
    alone = [list(generate(model, prompt, max_new_tokens)) for prompt in PROMPTS]
    assert batch(model, PROMPTS, max_new_tokens) == alone
    assert len({tuple(text) for text in alone}) == len(PROMPTS) or max_new_tokens == 1


def test_each_row_draws_from_its_own_generator() -> None:
    model = tiny_model()
    options: dict[str, Any] = {"temperature": 1.3, "top_k": 40}
    alone = [list(generate(model, prompt, 20, generator=seeded(row), **options)) for row, prompt in enumerate(PROMPTS)]
    generators = [seeded(row) for row in range(len(PROMPTS))]
    assert batch(model, PROMPTS, 20, generators=generators, **options) == alone


@pytest.mark.parametrize("prompts", [PROMPTS, [[1, 2, 3], [4, 5, 6]]], ids=["of several lengths", "of one length"])
def test_the_logits_of_each_row_are_those_of_the_full_forward_pass(
    prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(context_length=16).eval()
    seen: list[torch.Tensor] = []

    def record(logits: torch.Tensor, *_: object) -> int:
        seen.append(logits)
        return int(logits.argmax())

    monkeypatch.setattr(module, "_next_token", record)
    continuations = batch(model, prompts, 12)
    for number, logits in enumerate(seen):
        step, row = divmod(number, len(prompts))
        text = [*prompts[row], *continuations[row][:step]]
        with torch.no_grad():
            expected = model(torch.tensor([text[-16:]]))[0, -1]
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 12 * len(prompts)


def test_rows_that_have_ended_are_no_longer_computed() -> None:
    model = tiny_model(context_length=64)
    prompts = [[1, 2], [3], [4, 5, 6]]

    def alone(row: int) -> list[int]:
        return list(generate(model, prompts[row], 40, temperature=1.0, generator=seeded(row)))

    stop_token = alone(1)[8]
    expected = [text[: [*text, stop_token].index(stop_token)] for text in map(alone, range(3))]
    assert len({len(text) for text in expected}) == 3
    rows: list[int] = []
    model.tok_emb.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    generators = [seeded(row) for row in range(3)]
    assert batch(model, prompts, 40, temperature=1.0, generators=generators, stop_token=stop_token) == expected
    going_on = [sum(len(text) >= step for text in expected) for step in range(1, 40)]
    assert rows == [1, 1, 1, *(number for number in going_on if number)]


def test_all_rows_advance_in_one_forward_pass_and_the_cache_has_no_more_than_context_length() -> None:
    model = tiny_model(context_length=16)
    shapes: list[tuple[int, int]] = []
    positions: list[int] = []
    model.tok_emb.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[:2])))
    att = model.trf_blocks[0].att

    def record(module: object, inputs: tuple[Any, ...], output: object) -> None:
        positions.append(inputs[1].num_positions)

    att.register_forward_hook(record)
    batch(model, [[1, 2, 3], list(range(15))], 9)
    assert shapes[:4] == [(1, 3), (1, 15), (2, 1), (1, 1)]
    assert shapes[4:] == [(1, 16), (1, 1)] * 6 + [(1, 16)]
    assert max(positions) == 16


def test_a_batch_whose_rows_have_all_ended_is_over_and_restores_the_mode() -> None:
    model = model_with_odds({5: 1.0})
    steps = generate_batch(model, [[1], [2]], 10, generators=[None, None], stop_token=5)
    assert list(steps) == [] and model.training
    assert list(generate_batch(model, [], 10, generators=[])) == []
