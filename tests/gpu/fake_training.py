"""Trainings on fake cuda tensors, which have a shape and a device but no values; prints what each waited for as JSON.

Run as `python -m tests.gpu.fake_training LIBRARY TRAININGS`. LIBRARY: compiled from fake_cuda.cpp for this torch.
TRAININGS: JSON, changes to the parameters by name. An operation on tensors of two devices raises.
"""

import collections
import json
import sys
from collections.abc import Callable
from typing import Any

import tests.gpu.load_fake_cuda  # noqa: F401 - first: torch must find the library when it is imported

# isort: split
import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from reprogpt.distributed.process_group import ProcessGroup
from reprogpt.model.gpt import GPTModel
from reprogpt.numerics.device import Numerics
from reprogpt.params.train import TrainParams
from reprogpt.training import build, loop, resume
from reprogpt.training.build import Training, training_from_ids
from reprogpt.training.randomness import BookRandomness
from tests.tiny import PARAMS

CUDA = torch.device("cuda")
ATEN = torch.ops.aten
NUM_STEPS = 3


class Waits(TorchDispatchMode):
    """Counts the copies between host and device for which the host waits. Values of fake tensors are ones."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: collections.Counter[str] = collections.Counter()

    def take(self) -> dict[str, int]:
        """Counts since the last call, by what was copied."""
        counts = dict(self._counts)
        self._counts.clear()
        return counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is ATEN._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            self.note("value to host", args[0])
            return 1.0 if args[0].is_floating_point() else 1
        out = func(*args, **kwargs)
        if func is ATEN._to_copy.default and out.device.type != args[0].device.type:
            is_pinned = getattr(args[0], "is_pinned_here", False)
            if out.device.type == "cpu" or not (is_pinned and kwargs.get("non_blocking")):
                self._counts["tensor to host" if out.device.type == "cpu" else "tensor to device"] += 1
        return out

    def note(self, what: str, tensor: Tensor) -> None:
        if tensor.device.type == "cuda":
            self._counts[what] += 1


def pin_memory(tensor: Tensor) -> Tensor:
    """Pinned memory needs a driver."""
    tensor.is_pinned_here = True  # type: ignore[attr-defined]
    return tensor


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, dropout_p: float, is_causal: bool
) -> Tensor:
    """scaled_dot_product_attention by the kernels that torch chooses on a GPU."""
    assert attn_mask is None  # which only a batch of texts of several lengths has
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (query, key, value))
    out: Tensor
    if query.dtype == torch.bfloat16:
        out = ATEN._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)[0]
    else:
        needs_backward = torch.is_grad_enabled()
        out = ATEN._scaled_dot_product_efficient_attention(
            query, key, value, None, needs_backward, dropout_p, is_causal
        )[0]
    return out


def with_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function on the CPU's generator, whose tensors have values here, too."""

    def call(*arguments: Any) -> Any:
        with unset_fake_temporarily():
            return function(*arguments)

    return call


def move_model(model: GPTModel, device: torch.device, parallel: str, group: ProcessGroup) -> None:
    """Model.to(device), which can't replace the data of a fake parameter."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.empty(parameter.shape, device=device)))


def make_torch_take_cuda(waits: Waits) -> None:
    """Replace what asks for a driver, and what needs values."""

    def tolist(tensor: Tensor) -> Any:
        waits.note("values to host", tensor)
        return np.ones(tuple(tensor.shape)).tolist()

    replaced: list[tuple[Any, str, Any]] = [
        (FakeTensor, "tolist", tolist),
        (torch.Tensor, "pin_memory", pin_memory),
        (functional, "scaled_dot_product_attention", attention),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch.cuda, "is_bf16_supported", lambda *_: True),
        (torch.cuda, "get_rng_state", lambda: torch.zeros(16, dtype=torch.uint8)),
        (torch.cuda, "set_rng_state", lambda state: None),
        *(
            (BookRandomness, name, with_values(getattr(BookRandomness, name)))
            for name in ("_draw_permutation", "state", "load_state")
        ),
        (build, "shard_model", move_model),
    ]
    for owner, name, replacement in replaced:
        setattr(owner, name, replacement)


def train(training: Training, waits: Waits) -> dict[str, Any]:
    """Steps, a fetch of their records, an evaluation, a sample, a checkpoint and a step after it."""
    result: dict[str, Any] = {}
    waits.take()
    pending = []
    for _ in range(NUM_STEPS):
        training.step += 1
        pending.append(loop._run_step(training))
    result["steps"] = waits.take()
    records = loop._fetch_records(training, pending)
    result["fetched"] = [len(records), waits.take()]
    loop._evaluation_losses(training, training.step)
    result["evaluation"] = waits.take()
    result["sample"] = [len(loop._greedy_sample(training)), waits.take()]
    tensors = resume._state_tensors(training)
    result["checkpoint"] = dict(
        collections.Counter(f"{tensor.device.type} {tensor.dtype}" for tensor in tensors.values())
    )
    on_host = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype) if tensor.device.type == "cuda" else tensor
        for name, tensor in tensors.items()
    }
    resume._load_state_tensors(training, training.step, on_host)
    waits.take()
    loop._run_step(training)
    result["step after loading"] = waits.take()
    result["devices"] = sorted({tensor.device.type for tensor in training.model.parameters()})
    return result


def run(changes: dict[str, Any], waits: Waits) -> dict[str, Any]:
    """One training with these changes, in batches of 4 rows of 8 tokens."""
    params = TrainParams(**PARAMS | {"batch_size": 4, "max_norm": 1.0} | changes)
    numerics = Numerics(CUDA, params.precision, "torch")
    ids = np.arange(40 * params.context_length + 1, dtype=np.uint16) % params.vocab_size
    with FakeTensorMode(allow_non_fake_inputs=True), waits:
        training = training_from_ids(ids, ids, prompt=[1, 2], params=params, numerics=numerics)
        return train(training, waits)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    waits = Waits()
    make_torch_take_cuda(waits)
    print(json.dumps({name: run(changes, waits) for name, changes in json.loads(sys.argv[2]).items()}))
