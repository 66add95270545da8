"""How the processes of a training share its model: whole in each (DDP), or a part in each (FSDP2)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from reprogpt.model.gpt import GPTModel
from reprogpt.training.group import Group
from reprogpt.training.loss import NextTokenLoss

Loss = Callable[[Tensor, Tensor], Tensor]


def place_model(model: GPTModel, device: torch.device, parallel: str, group: Group) -> None:
    """Bring the model to the device; with fsdp, of every block and of the rest this process's part only.

    Call before an optimizer is made. The whole model then never is on one device, but a block at a time.
    """
    if group.size == 1 or parallel == "ddp":
        model.to(device)
        return
    mesh = init_device_mesh(device.type, (group.size,))
    for block in model.trf_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "features")


def shared_loss(loss: NextTokenLoss, device: torch.device, parallel: str, group: Group) -> Loss:
    """loss, whose gradients are the means over all processes."""
    if group.size == 1 or parallel == "fsdp":
        return loss
    ids = [torch.cuda.current_device()] if device.type == "cuda" else None
    # Otherwise DDP lays its buckets out again after its first step: a training that was resumed would add gradients in
    # another order than one that was not, once there are more than two processes.
    return DistributedDataParallel(loss, device_ids=ids, find_unused_parameters=True, gradient_as_bucket_view=True)


def before_the_last_part(loss: Loss) -> AbstractContextManager[object]:
    """Context for a part of a batch that is not its last: gradients need not meet those of others yet."""
    return loss.no_sync() if isinstance(loss, DistributedDataParallel) else nullcontext()
