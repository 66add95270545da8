"""The text samples that the evaluate stage writes."""

import pytest
import tiktoken
import torch

from reprogpt.data.tokens import decode, load_encoding
from reprogpt.evaluation.samples import sample_text
from reprogpt.model.generate import generate
from reprogpt.params.evaluate import EvaluateParams
from tests.tiny import CPU, PARAMS, tiny_model


@pytest.fixture(scope="module")
def encoding() -> tiktoken.Encoding:
    return load_encoding("gpt2")


def samples(encoding: tiktoken.Encoding, **changes: object) -> list[tuple[str, str]]:
    """Title and text of each sample. Ids below 64 are single characters, none of them a line end."""
    values = (
        PARAMS
        | {
            "eval_max_tokens": 0,
            "stop_at_end_of_text": True,
            "temperature": 1.0,
            "top_k": 25,
            "max_new_tokens": 20,
            "start_context": "A",
        }
        | changes
    )
    params = EvaluateParams(**{key: value for key, value in values.items() if key in EvaluateParams.model_fields})
    blocks = sample_text(tiny_model(), encoding, params=params, numerics=CPU).split("\n\n")
    return [(block.split("\n")[0], block.split("\n")[1]) for block in blocks]


def test_one_greedy_sample_then_three_drawn_ones(encoding: tiktoken.Encoding) -> None:
    titles = [title for title, _ in samples(encoding)]
    assert titles == ["greedy", *(f"temperature 1.0, top_k 25, sample {number}" for number in (1, 2, 3))]


def test_each_sample_continues_the_prompt_and_all_differ(encoding: tiktoken.Encoding) -> None:
    texts = [text for _, text in samples(encoding)]
    assert all(text[0] == "A" and len(text) == 21 for text in texts)
    assert len(set(texts)) == 4


def test_a_sample_ends_before_the_stop_token(encoding: tiktoken.Encoding) -> None:
    prompt = encoding.encode_ordinary("A")
    greedy = list(generate(tiny_model(), prompt, 20))
    values = PARAMS | {
        "eval_max_tokens": 0,
        "stop_at_end_of_text": True,
        "temperature": 0.0,
        "top_k": 1,
        "max_new_tokens": 20,
    }
    params = EvaluateParams(**{key: value for key, value in values.items() if key in EvaluateParams.model_fields})
    params = params.model_copy(update={"start_context": "A"})
    text = sample_text(tiny_model(), encoding, params=params, numerics=CPU, stop_token=greedy[3])
    expected = decode(encoding, prompt + greedy[: greedy.index(greedy[3])])
    assert text.startswith(f"greedy\n{expected}\n\n")


def test_the_greedy_sample_is_the_greedy_continuation(encoding: tiktoken.Encoding) -> None:
    prompt = encoding.encode_ordinary("A")
    assert samples(encoding)[0][1] == decode(encoding, prompt + list(generate(tiny_model(), prompt, 20)))


def test_samples_are_a_function_of_the_seed_alone(encoding: tiktoken.Encoding) -> None:
    first = samples(encoding)
    torch.rand(5)
    assert samples(encoding) == first
    other = samples(encoding, seed=124)
    assert other[0] == first[0]
    assert all(ours != theirs for ours, theirs in zip(first[1:], other[1:], strict=True))


def test_temperature_and_top_k_are_used(encoding: tiktoken.Encoding) -> None:
    for changes in ({"temperature": 0.0}, {"top_k": 1}):
        texts = [text for _, text in samples(encoding, **changes)]
        assert len(set(texts)) == 1
