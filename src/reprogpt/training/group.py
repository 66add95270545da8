"""The processes of one training: torch.distributed's process group, or one process alone.

Each has a share of every batch, and all have the same weights after every step. The first one has the files:
resume points, records and checkpoint.
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
class Group:
    """rank: this process's number, 0 for the first; size: how many there are. Alone by default.

    Where a method talks to the others, all must call it, in the same order. Alone, none does anything.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Which rows of some are this process's: every size-th, so that shares differ by one row at most."""
        return slice(self.rank, None, self.size)

    def facts(self) -> dict[str, str]:
        """What the bits depend on, as tags: {} alone."""
        return {"num_processes": str(self.size)} if self.size > 1 else {}

    def of_first(self, value: int) -> int:
        """The first process's value."""
        return self._exchange(value, lambda told: dist.broadcast(told, src=0))

    def largest(self, value: int) -> int:
        """The largest value of all processes."""
        return self._exchange(value, lambda told: dist.all_reduce(told, dist.ReduceOp.MAX))

    def sums(self, *values: float) -> list[float]:
        """Each value summed over all processes, in float64."""
        told = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(told)
        return [float(total) for total in told]

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes, on the device; no process waits for the device."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, those that are sharded put together on the CPU; of these, other processes get none."""
        gathered = {}
        for name, tensor in tensors.items():
            if not isinstance(tensor, DTensor):
                gathered[name] = tensor
                continue
            full = tensor.full_tensor()  # made on all, of one tensor at a time
            if self.is_first:
                gathered[name] = full.detach().cpu()
        return gathered

    def give(self, content: Tensor | None, to: Tensor) -> None:
        """Fill `to` of every process, whole or sharded, with the first process's content; others have None."""
        with torch.no_grad():
            if self.size == 1:
                assert content is not None
                to.copy_(content)
                return
            told = torch.empty(to.shape, dtype=to.dtype, device=to.device) if content is None else content.to(to.device)
            if isinstance(to, DTensor):
                to.copy_(distribute_tensor(told, to.device_mesh, to.placements, src_data_rank=0))
            else:
                dist.broadcast(told, src=0)
                to.copy_(told)

    def _exchange(self, value: int, talk: Callable[[Tensor], object]) -> int:
        told = torch.tensor(value)
        if self.size > 1:
            talk(told)
        return int(told)


ALONE = Group()


@contextmanager
def joined_group(device: str) -> Iterator[Group]:
    """The group of this process: the one that torch's launcher has put it into, else itself alone.

    device: as in params.yaml. On GPUs, each process of a machine takes the one of its number.
    """
    if not dist.is_torchelastic_launched():
        yield Group()
        return
    on_gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # What steers the training travels between the CPUs, so that no step waits for a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    yield Group(dist.get_rank(), dist.get_world_size())
    dist.barrier()  # none leaves while another still reads from it
