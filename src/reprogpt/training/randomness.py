"""The two randomness policies. Every random number of a training is drawn here.

`independent`: no draw depends on earlier ones: step k needs only (seed, k), and evaluating or sampling can't change
the training. `book`: every draw comes from torch's global generator in the order of the book's program, to reproduce
its printed numbers.

Both implement RandomnessPolicy, which is all that the training loop knows.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_CPU = torch.device("cpu")
# The second word of a generator's seed, different for each purpose. samples.py uses 3.
_EPOCH_ROWS = 1
_DROPOUT = 2
_DEVICE = 4


class RandomnessPolicy(Protocol):
    """The random draws of a training."""

    def seed_weights(self) -> None:
        """Call immediately before the model is built."""

    def begin_step(self, step: int) -> None:
        """Call before the forward pass of a training step."""

    def training_rows(self, epoch: int, num_rows: int) -> np.ndarray:
        """The epoch's permutation of the training rows: (num_rows,) int64."""

    def evaluation_rows(self, num_rows: int) -> np.ndarray:
        """The order in which one evaluation reads the training rows: (num_rows,) int64."""

    def dropout(self, values: Tensor, rate: float) -> Tensor:
        """Zero a share `rate` of the entries and scale the rest by 1 / (1 - rate)."""

    def recompute_context(self) -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        """Contexts of the forward pass and of its recomputation, in which dropout draws the same masks again.

        For torch.utils.checkpoint's context_fn. After the recomputation the generator is restored. Not needed on
        CUDA, where torch restores its generators itself: see needs_recompute_context.
        """

    def state(self) -> dict[str, Tensor]:
        """What load_state needs to continue in another process."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what state() returned."""


class IndependentRandomness:
    """A step's draws depend on (seed, step) only, an epoch's on (seed, epoch).

    The current epoch's permutation is kept in memory: 8 bytes per row, 8 MB for a gigabyte of English text in rows
    of 256 tokens. rank: of this process; different shards must have different dropout masks.
    """

    def __init__(self, seed: int, device: torch.device = _CPU, rank: int = 0) -> None:
        self._seed = seed
        self._device = device
        self._rank = rank
        self._epoch = -1
        self._rows = np.empty(0, np.int64)
        self._dropout_generator = self._bit_generator(_DROPOUT, 0)

    def seed_weights(self) -> None:
        torch.manual_seed(self._seed)

    def begin_step(self, step: int) -> None:
        self._dropout_generator = self._bit_generator(_DROPOUT, step, self._rank)
        if self._device.type != "cpu":
            # A GPU's fused kernels draw from the device's generator: reseeding it makes it depend on the step only.
            seed = int(self._bit_generator(_DEVICE, step, self._rank).random_raw() >> 1)
            torch.get_device_module(self._device).manual_seed(seed)

    def training_rows(self, epoch: int, num_rows: int) -> np.ndarray:
        if (epoch, num_rows) != (self._epoch, len(self._rows)):  # called in each step of an epoch
            generator = np.random.Generator(self._bit_generator(_EPOCH_ROWS, epoch))
            self._rows = generator.permutation(num_rows)
            self._epoch = epoch
        return self._rows

    def evaluation_rows(self, num_rows: int) -> np.ndarray:
        return np.arange(num_rows)

    def dropout(self, values: Tensor, rate: float) -> Tensor:
        if rate == 0:
            return values
        if values.device.type != "cpu":
            return functional.dropout(values, rate)
        # 16 random bits per entry: torch's own masks take nearly three times as long on a CPU. The rate is rounded to
        # 1/65536, and the scale uses the rounded rate, so the mean is preserved.
        threshold = min(round(rate * 65536), 65535)
        words = self._dropout_generator.random_raw(-(-values.numel() // 4))  # uint64: the bits of four entries each
        kept = words.view(np.uint16)[: values.numel()] >= threshold
        mask = torch.from_numpy(kept).view(values.shape).to(values.dtype)
        return values * mask.mul_(65536 / (65536 - threshold))

    def recompute_context(self) -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        if self._device.type != "cpu":
            return nullcontext(), _rewound_generator(self._device)
        return nullcontext(), self._rewound(self._dropout_generator.state)

    @contextmanager
    def _rewound(self, forward_state: Any) -> Iterator[None]:
        generator = self._dropout_generator
        present_state = generator.state
        generator.state = forward_state
        try:
            yield
        finally:  # torch may leave the recomputation early, by an internal exception
            generator.state = present_state

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        pass

    def _bit_generator(self, purpose: int, index: int, rank: int = 0) -> np.random.SFC64:
        words = [self._seed, purpose, index, rank] if rank else [self._seed, purpose, index]
        return np.random.SFC64(np.random.SeedSequence(words))


class BookRandomness:
    """All draws come from torch's global generator, in the book's order. A permutation takes 8 bytes per row.

    A pass over the training rows draws the DataLoader's base seed and the sampler's seed, and permutes with a
    generator of that seed; a pass over the validation rows draws a base seed. So evaluating more often changes the
    order of later epochs, as it does in the book.
    """

    def __init__(self, seed: int, device: torch.device = _CPU) -> None:
        self._seed = seed
        self._device = device
        self._epoch = -1
        self._rows = np.empty(0, np.int64)

    def seed_weights(self) -> None:
        torch.manual_seed(self._seed)

    def begin_step(self, step: int) -> None:
        pass

    def training_rows(self, epoch: int, num_rows: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch = epoch
            self._rows = self._draw_permutation(num_rows)
        return self._rows

    def evaluation_rows(self, num_rows: int) -> np.ndarray:
        rows = self._draw_permutation(num_rows)
        _draw_seed()  # the validation loader's base seed
        return rows

    def dropout(self, values: Tensor, rate: float) -> Tensor:
        return functional.dropout(values, rate)

    def recompute_context(self) -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        if self._device.type == "cpu":  # torch.utils.checkpoint restores the CPU's generator
            return nullcontext(), nullcontext()
        return nullcontext(), _rewound_generator(self._device)

    def state(self) -> dict[str, Tensor]:
        state = {"epoch": torch.tensor(self._epoch), "rows": torch.from_numpy(self._rows), "cpu": torch.get_rng_state()}
        if self._device.type != "cpu":
            state["device"] = torch.get_device_module(self._device).get_rng_state()
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._epoch = int(state["epoch"])
        self._rows = state["rows"].numpy()
        torch.set_rng_state(state["cpu"])
        if "device" in state:
            torch.get_device_module(self._device).set_rng_state(state["device"])

    def _draw_permutation(self, num_rows: int) -> np.ndarray:
        _draw_seed()  # the training loader's base seed
        sampler = torch.Generator().manual_seed(_draw_seed())
        return torch.randperm(num_rows, generator=sampler).numpy()


def needs_recompute_context(device: torch.device) -> bool:
    """Whether activation checkpointing needs recompute_context on this device.

    On CUDA torch restores its generator, and torch.compile can't trace a context of ours.
    """
    return device.type != "cuda"


def _rewound_generator(device: torch.device) -> AbstractContextManager[None]:
    """A context that rewinds the device's generator to its state at this call, and restores it afterwards.

    torch.utils.checkpoint does this for CUDA, but not for mps, whose module lacks the flag that it looks for.
    """
    module = torch.get_device_module(device)
    forward_state = module.get_rng_state()

    @contextmanager
    def rewound() -> Iterator[None]:
        present_state = module.get_rng_state()
        module.set_rng_state(forward_state)
        try:
            yield
        finally:
            module.set_rng_state(present_state)

    return rewound()


def _draw_seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_().item())
