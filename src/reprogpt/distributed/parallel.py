"""How the processes of a training share its model: replicated (DDP) or sharded (FSDP2)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from reprogpt.distributed.process_group import ProcessGroup
from reprogpt.model.gpt import GPTModel

LossFunction = Callable[[Tensor, Tensor], Tensor]


def shard_model(model: GPTModel, device: torch.device, parallel: str, group: ProcessGroup) -> None:
    """Move the model to the device; with parallel="fsdp", only this process's shard of each block and of the rest.

    Call before an optimizer is created. With fsdp, no device ever holds the whole model, only a block at a time.
    """
    if group.size == 1 or parallel == "ddp":
        model.to(device)
        return
    mesh = init_device_mesh(device.type, (group.size,))
    for block in model.trf_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden_states")


def wrap_ddp(loss: nn.Module, device: torch.device, parallel: str, group: ProcessGroup) -> LossFunction:
    """The loss, with gradients averaged over all processes."""
    if group.size == 1 or parallel == "fsdp":
        return loss
    device_ids = [torch.cuda.current_device()] if device.type == "cuda" else None
    # With find_unused_parameters, DDP does not rebuild its buckets after the first step: a resumed training would
    # otherwise add gradients in another order than an uninterrupted one, once there are more than two processes.
    return DistributedDataParallel(
        loss, device_ids=device_ids, find_unused_parameters=True, gradient_as_bucket_view=True
    )


def no_sync(loss: LossFunction) -> AbstractContextManager[object]:
    """Context for a micro-batch that is not the last: gradients are accumulated without communication."""
    return loss.no_sync() if isinstance(loss, DistributedDataParallel) else nullcontext()
