"""The model against the plain one of benchmarks/baseline.py, in which each formula is written out."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional

from benchmarks.baseline import PlainGPT, find_highest_gradient, loss_of, plain_sample
from reprogpt.model.generate import generate
from reprogpt.model.gpt import GPTModel
from reprogpt.model.kv_cache import KVCache
from tests.tiny import CONFIG, tiny_model

IDS = torch.tensor([[1, 5, 60, 3, 3, 0, 63, 9], [7, 2, 2, 30, 41, 5, 8, 1]])
TARGETS = IDS.roll(-1, dims=1)


def plain_model(seed: int = 0, **changes: Any) -> PlainGPT:
    torch.manual_seed(seed)
    shape = dataclasses.asdict(dataclasses.replace(CONFIG, **changes))
    assert not shape.pop("tie_weights")  # the plain model's are not
    return PlainGPT(**shape)


def plain_name(name: str) -> str:
    """The plain model's name of one of our parameters."""
    is_norm = "norm" in name
    return name.replace("weight", "scale").replace("bias", "shift") if is_norm else name


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_one_seed_gives_both_the_same_weights(qkv_bias: bool) -> None:
    plain = dict(plain_model(qkv_bias=qkv_bias).named_parameters())
    ours = {plain_name(name): parameter for name, parameter in tiny_model(qkv_bias=qkv_bias).named_parameters()}
    assert list(ours) == list(plain)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("changes", [{"drop_rate": 0.0}, {"drop_rate": 0.3}, {"drop_rate": 0.1, "qkv_bias": True}])
def test_loss_and_gradients_agree_dropout_and_all(changes: dict[str, Any]) -> None:
    """torch's dropout draws the same masks for both: the same shapes in the same order."""
    models: list[GPTModel | PlainGPT] = [tiny_model(**changes), plain_model(**changes)]
    losses = []
    for model in models:
        torch.manual_seed(5)
        losses.append(loss_of(model.train(), IDS, TARGETS))
        torch.autograd.backward(losses[-1])
    ours, plain = models
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        difference = (one.grad - other.grad).norm()
        # A key's bias shifts all scores of a row alike: its gradient is zero, but for rounding.
        assert difference < 1e-5 * other.grad.norm() or (name.endswith("W_key.bias") and difference < 1e-7)
    assert find_highest_gradient(ours) == pytest.approx(find_highest_gradient(plain), rel=1e-5)


def test_logits_agree_without_dropout() -> None:
    ours, plain = tiny_model().eval()(IDS), plain_model().eval()(IDS)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prompt", [[1], [5, 9, 2], [1, 2, 3, 4, 5, 6, 7, 8], list(range(12))])
def test_with_the_kv_cache_the_text_is_that_of_a_full_forward_pass_per_token(prompt: list[int]) -> None:
    """20 new tokens, past context_length = 8, where the window moves."""
    for seed in range(3):
        assert prompt + list(generate(tiny_model(seed), prompt, 20)) == plain_sample(plain_model(seed), prompt, 20)


def test_each_token_is_read_once_until_the_window_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    model, hidden_states = tiny_model(), GPTModel.hidden_states

    def recording(self: GPTModel, ids: torch.Tensor, kv_caches: list[KVCache] | None = None) -> torch.Tensor:
        lengths.append(ids.shape[1])
        return hidden_states(self, ids, kv_caches)

    monkeypatch.setattr(GPTModel, "hidden_states", recording)
    list(generate(model, [1, 2, 3], 8))
    assert lengths == [3, 1, 1, 1, 1, 1, 8, 8]


def test_compiled_hidden_states_are_the_same_in_one_graph() -> None:
    """torch.compile's tracing and gradients without its code generator, which needs a compiler or a GPU."""
    model = tiny_model().train()
    compiled = torch.compile(model.hidden_states, fullgraph=True, backend="aot_eager")
    results = []
    for hidden_states in (model.hidden_states, compiled):
        torch.manual_seed(5)
        model.zero_grad()
        torch.autograd.backward(
            functional.cross_entropy(model.out_head(hidden_states(IDS)).flatten(0, 1), TARGETS.flatten())
        )
        results.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
