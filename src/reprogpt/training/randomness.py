"""The two orders of random draws. Everything random in training is drawn here.

`independent`: nothing depends on how many draws came before, so step k needs only (seed, k), and
evaluating or sampling can't disturb training. `book`: every draw comes from torch's one global
stream in the order of the book's program, for holding our numbers against the printed ones.

Both have one interface (RandomOrder); the training loop knows neither.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_CPU = torch.device("cpu")
# First word after the seed: keeps the streams of different purposes apart.
_EPOCH_ROWS, _DROPOUT, _DEVICE = 1, 2, 4  # 3 is that of samples.py


class RandomOrder(Protocol):
    """What training asks of an order of random draws."""

    def seed_weights(self) -> None:
        """Call just before the model is built."""

    def begin_step(self, step: int) -> None:
        """Call before the forward pass of a training step."""

    def training_rows(self, epoch: int, num_rows: int) -> np.ndarray:
        """The order in which an epoch visits the rows: a permutation, (num_rows,) int64."""

    def evaluation_rows(self, num_rows: int) -> np.ndarray:
        """The order in which one evaluation visits the training rows, (num_rows,) int64."""

    def dropout(self, values: Tensor, rate: float) -> Tensor:
        """values with a share `rate` of its entries zeroed, the rest scaled by 1 / (1 - rate)."""

    def replay(self) -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        """Two contexts: dropout in the second draws what it drew in the first, and leaves no other trace."""

    def state(self) -> dict[str, Tensor]:
        """What load_state needs to go on from here in another process."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up the stream where state() left it."""


class IndependentOrder:
    """Each step's draws from (seed, step), each epoch's from (seed, epoch).

    rank: of several processes that share each batch; the masks of their shares must differ.
    """

    def __init__(self, seed: int, device: torch.device = _CPU, rank: int = 0) -> None:
        self._seed, self._device, self._rank = seed, device, rank
        self._stream = self._bits(_DROPOUT, 0)

    def seed_weights(self) -> None:
        torch.manual_seed(self._seed)

    def begin_step(self, step: int) -> None:
        self._stream = self._bits(_DROPOUT, step, self._rank)
        if self._device.type != "cpu":
            # A GPU's fused kernels draw from its own stream: from here on, that one depends on the step alone.
            seed = int(self._bits(_DEVICE, step, self._rank).random_raw() >> 1)
            torch.get_device_module(self._device).manual_seed(seed)

    def training_rows(self, epoch: int, num_rows: int) -> np.ndarray:
        return np.random.Generator(self._bits(_EPOCH_ROWS, epoch)).permutation(num_rows)

    def evaluation_rows(self, num_rows: int) -> np.ndarray:
        return np.arange(num_rows)

    def dropout(self, values: Tensor, rate: float) -> Tensor:
        if rate == 0:
            return values
        if values.device.type != "cpu":
            return functional.dropout(values, rate)
        # 16 random bits an entry: torch's own masks take nearly three times as long on a CPU. The
        # rate is rounded to 1/65536, and the scale uses the rounded one, so the mean is kept.
        threshold = min(round(rate * 65536), 65535)
        words = self._stream.random_raw(-(-values.numel() // 4))
        kept = words.view(np.uint16)[: values.numel()] >= threshold
        mask = torch.from_numpy(kept).view(values.shape).to(values.dtype)
        return values * mask.mul_(65536 / (65536 - threshold))

    def replay(self) -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        return nullcontext(), self._rewound(self._stream.state)

    @contextmanager
    def _rewound(self, then: Any) -> Iterator[None]:
        now, self._stream.state = self._stream.state, then
        try:
            yield
        finally:  # torch leaves by an exception of its own, once it has all it needs
            self._stream.state = now

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        pass

    def _bits(self, purpose: int, index: int, rank: int = 0) -> np.random.SFC64:
        words = [self._seed, purpose, index, rank] if rank else [self._seed, purpose, index]
        return np.random.SFC64(np.random.SeedSequence(words))


class BookOrder:
    """One global stream, drawn from in the book's order.

    A pass over the training rows draws the loader's base seed and the sampler's seed, and permutes
    with a generator of that seed; a pass over the validation rows draws a base seed. So evaluating
    more often changes the order of later epochs, as it does in the book.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._epoch = -1
        self._rows = np.empty(0, np.int64)

    def seed_weights(self) -> None:
        torch.manual_seed(self._seed)

    def begin_step(self, step: int) -> None:
        pass

    def training_rows(self, epoch: int, num_rows: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._pass_over_training_rows(num_rows)
        return self._rows

    def evaluation_rows(self, num_rows: int) -> np.ndarray:
        rows = self._pass_over_training_rows(num_rows)
        _draw_seed()  # the validation loader's base seed
        return rows

    def dropout(self, values: Tensor, rate: float) -> Tensor:
        return functional.dropout(values, rate)

    def replay(self) -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        return nullcontext(), nullcontext()  # torch itself brings its streams back

    def state(self) -> dict[str, Tensor]:
        state = {"epoch": torch.tensor(self._epoch), "rows": torch.from_numpy(self._rows), "cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._epoch, self._rows = int(state["epoch"]), state["rows"].numpy()
        torch.set_rng_state(state["cpu"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"])

    def _pass_over_training_rows(self, num_rows: int) -> np.ndarray:
        _draw_seed()  # the training loader's base seed
        sampler = torch.Generator().manual_seed(_draw_seed())
        return torch.randperm(num_rows, generator=sampler).numpy()


def _draw_seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_().item())
