"""The output head fused with its loss, which keeps one tensor of the logits' size, (tokens, vocab_size), not three.

The logits are the largest tensor of a training step. As separate operations, head and cross-entropy keep logits,
log-probabilities and their gradient. Here one buffer serves for all three; on a GPU it holds a chunk of the tokens.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# On the CPU: rows per softmax, so that their copy stays in the processor's cache.
CPU_SOFTMAX_ROWS = 32
# On a GPU: logits per chunk, 1 GiB in bf16. Kernels index up to 2^31 entries with 32 bits, which is faster.
MAX_CHUNK_LOGITS = 1 << 29
# On a GPU: cuBLAS is fastest for row lengths that are a multiple of this; GPT-2's vocabulary size is odd.
VOCAB_MULTIPLE = 128

# (logits (n, V + padding), targets (n,), V) -> losses (n,) float32, and d loss / d logits in the type of the logits
SoftmaxGradient = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, *, compiled: bool = False) -> Tensor:
    """Mean cross-entropy of softmax(hidden @ weight.T), in nats per token: a float32 scalar.

    hidden: (N, D), the output head's input. weight: (V, D), the output head's. targets: (N,) int64.
    Equals cross_entropy(linear(hidden, weight), targets) to rounding, gradients too; differentiable once.
    Under autocast, matrix products run in its dtype, and on a GPU the logits have it, too; the rest is float32.
    compiled: on a GPU, fuse the elementwise operations with torch.compile.
    """
    loss: Tensor
    if hidden.device.type == "cpu":
        loss = _HeadLoss.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    else:
        softmax_gradient = _compiled_softmax_gradient() if compiled else _softmax_gradient
        loss = _ChunkedHeadLoss.apply(hidden, weight, targets, softmax_gradient)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def head_metrics(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats (float32), and the number of tokens with the largest logit (int64): two scalars.

    Arguments as for head_loss. Holds at most MAX_CHUNK_LOGITS logits at a time.
    """
    vocab_size = len(weight)
    hidden, weight = _matmul_operands(hidden, weight)
    loss_sum = torch.zeros((), dtype=torch.float32, device=hidden.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for chunk in _chunks(len(hidden), len(weight)):
            logits = (hidden[chunk] @ weight.T)[:, :vocab_size].float()
            loss_sum += functional.cross_entropy(logits, targets[chunk], reduction="sum")
            num_correct += (logits.argmax(dim=-1) == targets[chunk]).sum()
    return loss_sum, num_correct


class _HeadLoss(torch.autograd.Function):
    """On the CPU. d loss / d logits = (softmax(logits) - one_hot(targets)) / N."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        device_type = hidden.device.type
        dtype = _matmul_dtype(device_type)
        hidden = hidden.to(dtype)
        weight = weight.to(dtype)
        row_indices = torch.arange(len(targets), device=targets.device)
        with torch.autocast(device_type, enabled=False):
            logits = (hidden @ weight.T).float()
            highest = logits.amax(dim=-1)
            target_logits = logits[row_indices, targets]
            for rows in torch.split(logits, CPU_SOFTMAX_ROWS):
                rows.copy_(torch.softmax(rows, dim=-1))
        # log(sum(exp(logits))) = highest - log(largest probability). That probability is at least 1 / V, so this is
        # accurate, and finite even if the target's own probability underflows.
        losses = highest - logits.amax(dim=-1).log() - target_logits
        logits[row_indices, targets] -= 1
        ctx.save_for_backward(hidden, weight, logits)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, grad_logits = ctx.saved_tensors
        scale = grad_loss / len(hidden)  # applied to the (N, D) factor and result, not to the (N, V) one
        grad_logits = grad_logits.to(weight.dtype)
        grad_hidden = (grad_logits @ weight).float() * scale
        grad_weight = grad_logits.T @ (hidden.float() * scale).to(weight.dtype)
        return grad_hidden, grad_weight.float(), None


class _ChunkedHeadLoss(torch.autograd.Function):
    """On a GPU: loss and gradients of one chunk of tokens at a time, all in the forward pass, so no logits are saved.

    Chunks and padding depend on the shapes only, so that equal runs have equal bits.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softmax_gradient: SoftmaxGradient) -> Tensor:
        vocab_size = len(weight)
        num_tokens = len(hidden)
        operand, padded = _matmul_operands(hidden, weight)
        scaled = operand / num_tokens  # scales the gradient: here on (N, D), not on (N, V)
        losses = torch.empty(num_tokens, dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(operand)
        grad_weight = torch.zeros(padded.shape, dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk in _chunks(num_tokens, len(padded)):
                logits = operand[chunk] @ padded.T
                losses[chunk], grad_logits = softmax_gradient(logits, targets[chunk], vocab_size)
                torch.mm(grad_logits, padded, out=grad_hidden[chunk])
                grad_weight += grad_logits.T @ scaled[chunk]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.vocab_size = vocab_size
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_loss / len(grad_hidden)
        return grad_hidden.float() * scale, grad_weight[: ctx.vocab_size] * grad_loss, None, None


def _softmax_gradient(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row and its gradient, softmax(logits) - one_hot(targets); 0 in the padding."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    is_padding = columns >= vocab_size
    values = logits.float().masked_fill(is_padding, -torch.inf)
    # In this form torch.compile needs one pass over the logits; with logsumexp it needs two.
    highest = values.amax(dim=-1, keepdim=True)
    exponentials = torch.exp(values - highest)
    totals = exponentials.sum(dim=-1, keepdim=True)
    target_logits = logits.gather(1, targets[:, None]).float()
    losses = highest + totals.log() - target_logits
    is_target = columns == targets[:, None]
    grad_logits = exponentials / totals - is_target.float()
    return losses[:, 0], grad_logits.to(logits.dtype)


@cache
def _compiled_softmax_gradient() -> SoftmaxGradient:
    compiled: SoftmaxGradient = torch.compile(_softmax_gradient, dynamic=False)
    return compiled


def _matmul_operands(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """hidden and weight in the dtype of matrix products; the weight's rows padded with zeros to VOCAB_MULTIPLE."""
    dtype = _matmul_dtype(hidden.device.type)
    num_padding = -len(weight) % VOCAB_MULTIPLE
    return hidden.to(dtype), functional.pad(weight.to(dtype), (0, 0, 0, num_padding))


def _chunks(num_tokens: int, num_columns: int) -> Iterator[slice]:
    """Equal ranges of tokens, the last one shorter, of at most MAX_CHUNK_LOGITS logits each."""
    most = max(1, MAX_CHUNK_LOGITS // num_columns)
    num_chunks = -(-num_tokens // most)
    size = -(-num_tokens // num_chunks)
    for start in range(0, num_tokens, size):
        yield slice(start, start + size)


def _matmul_dtype(device_type: str) -> torch.dtype:
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return torch.float32
