"""Output head and cross-entropy as one operation, against the two as separate ones."""

import math

import pytest
import torch
from torch.nn import functional

from reprogpt.model import loss_head as output_head
from reprogpt.model.loss_head import MAX_CHUNK_LOGITS, VOCAB_MULTIPLE, head_loss, head_metrics

TARGETS = torch.tensor([3, 0, 3, 15, 7, 7])


def operands(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Six hidden states of width 5, and an output head of 16 tokens."""
    generator = torch.Generator().manual_seed(0)
    hidden = scale * torch.randn(6, 5, generator=generator)
    weight = torch.randn(16, 5, generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def separate_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight), targets)


def test_two_equally_likely_tokens_have_a_loss_of_log_two() -> None:
    hidden, weight = torch.ones(1, 1, requires_grad=True), torch.ones(2, 1, requires_grad=True)
    loss = head_loss(hidden, weight, torch.tensor([1]))
    torch.autograd.backward(loss)
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    assert loss.item() == pytest.approx(0.693147)
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.5], [-0.5]]


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_value_and_gradients_are_those_of_separate_operations(scale: float) -> None:
    ours, exact = operands(scale), operands(scale, torch.float64)
    one, other = head_loss(*ours, TARGETS), separate_loss(*exact, TARGETS)
    torch.autograd.backward(one * 3)
    torch.autograd.backward(other * 3)
    assert one.item() == pytest.approx(other.item(), rel=1e-6)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert (mine.grad.double() - theirs.grad).abs().max() < 1e-6 * theirs.grad.abs().max()


def test_a_target_of_probability_zero_has_a_finite_loss() -> None:
    """Its probability, exp(-1000), is 0 as a float."""
    hidden, weight = torch.full((1, 1), 1000.0, requires_grad=True), torch.tensor([[0.0], [1.0]], requires_grad=True)
    loss = head_loss(hidden, weight, torch.tensor([0]))
    torch.autograd.backward(loss)
    assert loss.item() == 1000
    assert weight.grad is not None
    assert weight.grad.tolist() == [[-1000.0], [1000.0]]


def test_nan_is_not_hidden() -> None:
    hidden, weight = operands()
    with torch.no_grad():
        hidden[2, 1] = torch.nan
    assert head_loss(hidden, weight, TARGETS).isnan()


def test_under_autocast_matrix_products_use_its_dtype() -> None:
    ours, theirs = operands(), operands()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one, other = head_loss(*ours, TARGETS), separate_loss(*theirs, TARGETS)
    torch.autograd.backward(one)
    torch.autograd.backward(other)
    assert one.dtype == torch.float32
    assert one.item() == pytest.approx(other.item(), rel=1e-5)
    assert one.item() != head_loss(*operands(), TARGETS).item()
    for mine, theirs_ in zip(ours, theirs, strict=True):
        assert mine.grad is not None and theirs_.grad is not None
        torch.testing.assert_close(mine.grad, theirs_.grad, rtol=0, atol=0.004)  # bf16 has 8 bits


def test_a_second_derivative_is_refused_not_wrong() -> None:
    hidden, weight = operands()
    [gradient] = torch.autograd.grad(head_loss(hidden, weight, TARGETS), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.backward(gradient.sum())


def test_the_operands_are_left_unchanged() -> None:
    hidden, weight = operands()
    before = hidden.detach().clone(), weight.detach().clone()
    torch.autograd.backward(head_loss(hidden, weight, TARGETS))
    assert torch.equal(hidden, before[0]) and torch.equal(weight, before[1])


# On a GPU the same is done in chunks, with a padded vocabulary. Its operations run here on the CPU.

Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def chunked_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """head_loss as on a GPU, not compiled."""
    loss: torch.Tensor = output_head._ChunkedHeadLoss.apply(hidden, weight, targets, output_head._softmax_gradient)
    return loss


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of at most 10 rows of 384 logits."""
    monkeypatch.setattr(output_head, "MAX_CHUNK_LOGITS", 3900)


def odd_operands(dtype: torch.dtype = torch.float32) -> Operands:
    """37 hidden states of width 24, a vocabulary of 301, which is padded to 384, and targets at both of its ends.

    Logits are about 1.
    """
    generator = torch.Generator().manual_seed(1)
    hidden = 0.2 * torch.randn(37, 24, generator=generator)
    weight = torch.randn(301, 24, generator=generator)
    targets = torch.randint(0, 301, (37,), generator=generator)
    targets[:2] = torch.tensor([0, 300])
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def relative_errors(ours: Operands, exact: Operands, ours_loss: torch.Tensor, loss: torch.Tensor) -> list[float]:
    """Of the loss, and of the gradients of hidden and weight, by their norms."""
    errors = [abs(ours_loss.item() - loss.item()) / loss.item()]
    for mine, wanted in zip(ours[:2], exact[:2], strict=True):
        assert mine.grad is not None and wanted.grad is not None
        assert mine.grad.dtype == torch.float32 and mine.grad.shape == wanted.grad.shape
        errors.append(float((mine.grad.double() - wanted.grad).norm() / wanted.grad.norm()))
    return errors


@pytest.mark.parametrize(("is_bf16", "lowest", "highest"), [(False, 0.0, 1e-6), (True, 1e-5, 2**-8)])
def test_in_chunks_value_and_gradients_are_those_of_separate_operations(
    small_chunks: None, is_bf16: bool, lowest: float, highest: float
) -> None:
    """In float64; in bf16 to its rounding, 2^-9 for each factor and logit, all about 1; which must be seen."""
    ours, exact = odd_operands(), odd_operands(torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        loss = chunked_loss(*ours)
    exact_loss = separate_loss(*exact)
    torch.autograd.backward(3 * loss)
    torch.autograd.backward(3 * exact_loss)
    errors = relative_errors(ours, exact, loss, exact_loss)
    assert loss.dtype == torch.float32
    assert lowest <= max(errors) <= highest, errors


def test_the_number_of_chunks_changes_values_by_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = odd_operands(), odd_operands()
    one = chunked_loss(*whole)
    monkeypatch.setattr(output_head, "MAX_CHUNK_LOGITS", 384)  # a row at a time
    other = chunked_loss(*parts)
    torch.autograd.backward(one)
    torch.autograd.backward(other)
    assert one.item() == pytest.approx(other.item(), rel=1e-6)
    for mine, theirs in zip(whole[:2], parts[:2], strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-7)


def test_padding_gets_no_probability() -> None:
    """All logits are -1000, beside which a padded row of zeros, with a logit of 0, would have all probability."""
    hidden, weight = torch.ones(3, 1, requires_grad=True), torch.full((130, 1), -1000.0, requires_grad=True)
    targets = torch.tensor([0, 64, 129])
    loss = chunked_loss(hidden, weight, targets)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(math.log(130), abs=1e-4)  # float32 has steps of 6e-5 at 1000
    assert weight.grad is not None and weight.grad.shape == (130, 1)
    expected = torch.full((130, 1), 1 / 130)
    expected[targets] -= 1 / 3
    torch.testing.assert_close(weight.grad, expected)
    loss_sum, num_correct = head_metrics(hidden, weight, targets)
    assert loss_sum.item() == pytest.approx(3 * math.log(130), abs=3e-4)
    assert num_correct.item() == 1  # of equal logits the first counts as the largest: the target of the first row


def test_in_chunks_a_target_of_probability_zero_has_a_finite_loss() -> None:
    hidden, weight = torch.full((1, 1), 1000.0, requires_grad=True), torch.tensor([[0.0], [1.0]], requires_grad=True)
    loss = chunked_loss(hidden, weight, torch.tensor([0]))
    torch.autograd.backward(loss)
    assert loss.item() == 1000
    assert weight.grad is not None and weight.grad.tolist() == [[-1000.0], [1000.0]]


def test_in_chunks_the_operands_are_left_unchanged_and_a_second_derivative_is_refused() -> None:
    hidden, weight, targets = odd_operands()
    before = hidden.detach().clone(), weight.detach().clone()
    [gradient] = torch.autograd.grad(chunked_loss(hidden, weight, targets), hidden, create_graph=True)
    assert torch.equal(hidden, before[0]) and torch.equal(weight, before[1])
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.backward(gradient.sum())


@pytest.mark.parametrize("is_bf16", [False, True])
def test_metrics_in_chunks_are_the_summed_cross_entropy_and_the_hits(small_chunks: None, is_bf16: bool) -> None:
    hidden, weight, targets = odd_operands()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        logits = functional.linear(hidden, weight).float()
        targets[5:20] = logits.argmax(dim=-1)[5:20]
        loss_sum, num_correct = head_metrics(hidden, weight, targets)
    wanted = functional.cross_entropy(logits, targets, reduction="sum")
    assert (loss_sum.dtype, num_correct.dtype) == (torch.float32, torch.int64)
    assert loss_sum.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert num_correct.item() == (logits.argmax(dim=-1) == targets).sum().item() >= 15
    assert not loss_sum.requires_grad


@pytest.mark.parametrize("num_tokens", [1, 512, 10_672, 43 * 1024, 64 * 1024, 1_000_003])
@pytest.mark.parametrize("vocab_size", [64, 50_257, 1 << 30])
def test_chunks_are_equal_cover_all_tokens_and_are_small_enough(num_tokens: int, vocab_size: int) -> None:
    """43 rows of 1024 tokens and GPT-2's vocabulary exceed the 2^31 entries that kernels index with 32 bits."""
    if vocab_size == 1 << 30:
        num_tokens = min(num_tokens, 512)
    num_columns = vocab_size + -vocab_size % VOCAB_MULTIPLE
    chunks = list(output_head._chunks(num_tokens, num_columns))
    lengths = [min(chunk.stop, num_tokens) - chunk.start for chunk in chunks]
    assert [chunk.start for chunk in chunks] == [sum(lengths[:index]) for index in range(len(chunks))]
    assert sum(lengths) == num_tokens
    assert len(set(lengths[:-1])) <= 1 and 0 <= lengths[0] - lengths[-1] < len(chunks)
    assert lengths[0] * num_columns <= MAX_CHUNK_LOGITS < 2**31 or lengths[0] == 1
