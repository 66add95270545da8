"""The model: shapes, causality, dropout, and the book's formulas."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from reprogpt.model.gpt import GPTConfig, GPTModel, MultiHeadAttention
from tests.tiny import CONFIG, tiny_model

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [60, 61, 62, 63, 0, 0, 0, 0]])


def unchanged(values: Tensor, rate: float) -> Tensor:
    return values


def softmax(x: np.ndarray) -> np.ndarray:
    shares: np.ndarray = np.exp(x) / np.exp(x).sum()
    return shares


def normed(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The book's LayerNorm of one vector."""
    centered = x - x.mean()
    scaled = weights[f"{name}.weight"] * centered / np.sqrt((centered**2).mean() + 1e-5)
    result: np.ndarray = scaled + weights[f"{name}.bias"]
    return result


def linear(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    result: np.ndarray = weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0)
    return result


def book_logits(ids: list[int], weights: dict[str, np.ndarray], config: GPTConfig) -> np.ndarray:
    """Chapters 3 and 4 of the book for one row of ids, (T, V), vector by vector."""
    xs = [weights["tok_emb.weight"][token] + weights["pos_emb.weight"][i] for i, token in enumerate(ids)]
    size = config.emb_dim // config.n_heads
    for block in (f"trf_blocks.{i}" for i in range(config.n_layers)):
        inputs = [normed(x, weights, f"{block}.norm1") for x in xs]
        queries, keys, values = (
            [linear(x, weights, f"{block}.att.W_{kind}") for x in inputs] for kind in ("query", "key", "value")
        )
        for i in range(len(ids)):
            context = []
            for head in (slice(h * size, (h + 1) * size) for h in range(config.n_heads)):
                scores = np.array([queries[i][head] @ keys[j][head] / math.sqrt(size) for j in range(i + 1)])
                context.append(sum(share * values[j][head] for j, share in enumerate(softmax(scores))))
            xs[i] = xs[i] + linear(np.concatenate(context), weights, f"{block}.att.out_proj")
        for i, x in enumerate(xs):
            inner = linear(normed(x, weights, f"{block}.norm2"), weights, f"{block}.ff.layers.0")
            gelu = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            xs[i] = x + linear(gelu, weights, f"{block}.ff.layers.2")
    return np.stack([weights["out_head.weight"] @ normed(x, weights, "final_norm") for x in xs])


def perturbed_model(**changes: bool) -> GPTModel:
    """A double-precision model whose norms and biases are not at their plain initial values."""
    model = tiny_model(**changes).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_logits_are_those_of_the_books_formulas(qkv_bias: bool) -> None:
    model = perturbed_model(qkv_bias=qkv_bias)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    wanted = np.stack([book_logits(row, weights, model.config) for row in IDS.tolist()])
    np.testing.assert_allclose(model(IDS).detach().numpy(), wanted, rtol=0, atol=1e-10)


def test_a_row_of_ids_becomes_a_row_of_logits() -> None:
    logits = tiny_model()(IDS)
    assert (logits.shape, logits.dtype) == ((2, 8, 64), torch.float32)


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_a_row_may_be_shorter_than_the_context(num_tokens: int) -> None:
    model = tiny_model().eval()
    assert torch.allclose(model(IDS[:, :num_tokens]), model(IDS)[:, :num_tokens], atol=1e-6)


def test_hidden_states_are_what_the_output_head_reads() -> None:
    model = tiny_model().eval()
    assert model.hidden_states(IDS).shape == (2, 8, 32)
    assert torch.equal(model.out_head(model.hidden_states(IDS)), model(IDS))


@pytest.mark.parametrize("training", [False, True])
def test_a_later_token_changes_no_earlier_logit(training: bool) -> None:
    model = GPTModel(CONFIG, unchanged).train(training)
    other = IDS.clone()
    other[:, 5] = 9
    before, after = model(IDS), model(other)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(dim=-1).any()


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    model = tiny_model().eval()
    assert torch.allclose(model(IDS)[1], model(IDS[1:])[0], atol=1e-6)


def test_fused_attention_of_evaluation_equals_the_explicit_one_of_training() -> None:
    torch.manual_seed(0)
    model = GPTModel(CONFIG, unchanged)
    explicit = model.train()(IDS)
    assert torch.allclose(model.eval()(IDS), explicit, rtol=0, atol=1e-6)


def test_dropout_is_off_in_evaluation_and_on_in_training() -> None:
    model = tiny_model(drop_rate=0.5)
    assert torch.equal(model.eval()(IDS), model(IDS))
    assert not torch.equal(model.train()(IDS), model(IDS))


def test_dropout_is_applied_in_the_books_order_at_the_configs_rate() -> None:
    drawn: list[tuple[tuple[int, ...], float]] = []

    def recorded(values: Tensor, rate: float) -> Tensor:
        drawn.append((tuple(values.shape), rate))
        return values

    GPTModel(CONFIG, recorded)(IDS)
    embedding, attention, branch = ((2, 8, 32), 0.1), ((2, 4, 8, 8), 0.1), ((2, 8, 32), 0.1)
    assert drawn == [embedding, attention, branch, branch, attention, branch, branch]


def test_no_dropout_is_applied_in_evaluation() -> None:
    def refuse(values: Tensor, rate: float) -> Tensor:
        raise AssertionError("drawn")

    GPTModel(CONFIG, refuse).eval()(IDS)


def test_attention_dropout_is_applied_to_normalized_weights() -> None:
    sums: list[Tensor] = []

    def recorded(values: Tensor, rate: float) -> Tensor:
        sums.append(values.sum(dim=-1))
        return values

    GPTModel(CONFIG, recorded)(IDS)
    assert torch.allclose(sums[1], torch.ones(2, 4, 8)) and torch.allclose(sums[4], torch.ones(2, 4, 8))


def test_gpt_124m_has_162_419_712_parameters() -> None:
    with torch.device("meta"):
        model = GPTModel(GPTConfig(50257, 256, 768, 12, 12, 0.1, False))
    assert sum(parameter.numel() for parameter in model.parameters()) == 162_419_712


def test_biases_of_query_key_and_value_are_the_only_ones_that_qkv_bias_adds() -> None:
    without, with_bias = (set(tiny_model(qkv_bias=flag).state_dict()) for flag in (False, True))
    added = {f"trf_blocks.{i}.att.W_{kind}.bias" for i in (0, 1) for kind in ("query", "key", "value")}
    assert with_bias - without == added and without < with_bias


def test_output_head_has_weights_of_its_own() -> None:
    model = tiny_model()
    assert model.out_head.weight.data_ptr() != model.tok_emb.weight.data_ptr()
    assert model.out_head.bias is None


def test_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.n_heads = 8  # type: ignore[misc]


def test_torch_compile_traces_activation_checkpointing_as_one_graph() -> None:
    """As on CUDA, where there is no recompute_context: torch.compile can't trace one that is a bound method."""
    torch.manual_seed(0)
    model = GPTModel(dataclasses.replace(CONFIG, drop_rate=0.0), activation_checkpointing=True)
    found = []
    for hidden_states in (model.hidden_states, torch.compile(model.hidden_states, backend="eager", fullgraph=True)):
        model.zero_grad()
        hidden = hidden_states(IDS)
        torch.autograd.backward(hidden.square().sum())
        found.append([hidden.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(list(model.parameters()))  # the output head has no gradient, hidden is one more
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


# Branches for a GPU, whose operations run here on the CPU.


class ElsewhereTensor(Tensor):
    """A tensor of the CPU that says it is on CUDA."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_one_product_gives_query_key_and_value_as_three_do(qkv_bias: bool) -> None:
    """Values and gradients, in float64, to rounding."""
    model = perturbed_model(qkv_bias=qkv_bias)
    attention = model.trf_blocks[0].att
    assert isinstance(attention, MultiHeadAttention)
    found = []
    for is_elsewhere in (False, True):
        attention.zero_grad()
        x = torch.linspace(-1, 1, 2 * 8 * 32, dtype=torch.float64).sin().view(2, 8, 32).requires_grad_()
        parts = attention._project(x.as_subclass(ElsewhereTensor) if is_elsewhere else x)
        assert all(part.shape == (2, 4, 8, 8) for part in parts)
        query, key, value = parts
        # A weight of its own for each part, so that no two may be exchanged.
        torch.autograd.backward((query * query + 2 * key * key + 3 * value * value).sum())
        layers = (attention.W_query, attention.W_key, attention.W_value)
        gradients = [parameter.grad for layer in layers for parameter in layer.parameters()]
        assert len(gradients) == (6 if qkv_bias else 3)
        found.append([*(part.detach().as_subclass(Tensor) for part in parts), x.grad, *gradients])
    for separate, fused in zip(*found, strict=True):
        assert separate is not None and fused is not None and separate.abs().max() > 0
        torch.testing.assert_close(fused, separate, rtol=1e-12, atol=1e-12)


def test_on_cuda_embeddings_have_the_same_values_and_gradients() -> None:
    """Token 0 is read four times: its gradients are added."""
    found = []
    for ids in (IDS, IDS.as_subclass(ElsewhereTensor)):
        model = tiny_model()
        embeddings = model._token_embeddings(ids).as_subclass(Tensor)
        torch.autograd.backward((embeddings * torch.arange(32)).sum())
        found.append((embeddings.detach(), model.tok_emb.weight.grad))
    for separate, indexed in zip(*found, strict=True):
        assert separate is not None and indexed is not None
        assert torch.equal(separate, indexed)
