"""The processes of one training: torch.distributed's process group, or a single process.

Each process computes its shard of every batch; all have the same weights after every step. Rank 0 owns the files:
checkpoints, step records and the model.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


@dataclass(frozen=True)
class ProcessGroup:
    """rank: this process's number, from 0. size: the number of processes. A single process by default.

    Collectives must be called by all processes, in the same order. In a single process they do nothing.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def shard(self) -> slice:
        """This process's share of a batch: every size-th row, so shards differ by at most one row."""
        return slice(self.rank, None, self.size)

    def tags(self) -> dict[str, str]:
        """num_processes, on which the bits depend; {} for a single process."""
        return {"num_processes": str(self.size)} if self.size > 1 else {}

    def broadcast_object(self, value: int) -> int:
        """Rank 0's value."""
        return self._communicate(value, lambda tensor: dist.broadcast(tensor, src=0))

    def all_reduce_max(self, value: int) -> int:
        """The largest value of all processes."""
        return self._communicate(value, lambda tensor: dist.all_reduce(tensor, dist.ReduceOp.MAX))

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Each value summed over all processes, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(tensor)
        return [float(total) for total in tensor]

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """The mean over all processes, on the device and in place; the host does not wait for the device."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def gather_state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors by name, sharded ones gathered on the CPU of rank 0; other processes get only unsharded ones."""
        gathered = {}
        for name, tensor in tensors.items():
            if not isinstance(tensor, DTensor):
                gathered[name] = tensor
                continue
            full = tensor.full_tensor()  # a collective; one tensor at a time bounds the memory
            if self.is_first:
                gathered[name] = full.detach().cpu()
        return gathered

    def broadcast_tensor(self, source: Tensor | None, to: Tensor) -> None:
        """Copy rank 0's source into `to` of every process, sharded or not. Other processes pass None."""
        with torch.no_grad():
            if self.size == 1:
                assert source is not None
                to.copy_(source)
                return
            received = torch.empty(to.shape, dtype=to.dtype, device=to.device)
            tensor = received if source is None else source.to(to.device)
            if isinstance(to, DTensor):
                to.copy_(distribute_tensor(tensor, to.device_mesh, to.placements, src_data_rank=0))
            else:
                dist.broadcast(tensor, src=0)
                to.copy_(tensor)

    def _communicate(self, value: int, collective: Callable[[Tensor], object]) -> int:
        tensor = torch.tensor(value)
        if self.size > 1:
            collective(tensor)
        return int(tensor)


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def init_process_group(device: str) -> Iterator[ProcessGroup]:
    """The group that torchrun has started this process in, else a single process.

    device: as in params.yaml. On GPUs, each process of a machine takes the GPU of its LOCAL_RANK.
    """
    if not dist.is_torchelastic_launched():
        yield SINGLE_PROCESS
        return
    on_gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # gloo for tensors on the CPU, which steer the training: no step then waits for a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    yield ProcessGroup(dist.get_rank(), dist.get_world_size())
    dist.barrier()  # no process leaves while another still reads from it
