"""Keys that both train and evaluate read: how numbers are computed and text is sampled."""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from reprogpt.params.loader import Params, require_divisor
from reprogpt.params.sampling_limits import MAX_NEW_TOKENS, MAX_PROMPT_CHARACTERS, MAX_SEED

MAX_COUNT = 2**31 - 1  # of steps, epochs, rows or processes


class SharedParams(Params):
    """Parameters of both `train` and `evaluate`. A validator sees the keys declared above its own."""

    # The only encoding whose vocabulary is installed with the project and fits the GPT-2 checkpoint.
    encoding: Literal["gpt2"]
    seed: int = Field(ge=0, le=MAX_SEED)
    batch_size: int = Field(ge=1, le=MAX_COUNT)
    accumulate: int = Field(ge=1, le=MAX_COUNT)
    nproc_per_node: int = Field(ge=1, le=MAX_COUNT)
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["fp32", "tf32", "bf16"]
    matmul: Literal["auto", "torch", "onednn"]
    numerics: Literal["auto", "native", "portable"]
    start_context: str = Field(
        min_length=1, max_length=MAX_PROMPT_CHARACTERS, description=f"text of 1 to {MAX_PROMPT_CHARACTERS} characters"
    )
    max_new_tokens: int = Field(ge=1, le=MAX_NEW_TOKENS)

    @property
    def rows_per_forward(self) -> int:
        """Rows in one forward pass: a micro-batch on one process."""
        return self.batch_size // (self.accumulate * self.nproc_per_node)

    def arithmetic(self) -> dict[str, Any]:
        """The keywords of numerics.set_up_numerics."""
        return {key: getattr(self, key) for key in ("device", "precision", "matmul", "numerics", "nproc_per_node")}

    @field_validator("accumulate")
    @classmethod
    def _parts_are_equal(cls, accumulate: int, info: ValidationInfo) -> int:
        return require_divisor(accumulate, "batch_size", info)

    @field_validator("nproc_per_node")
    @classmethod
    def _shares_are_equal(cls, nproc_per_node: int, info: ValidationInfo) -> int:
        batch_size, accumulate = (info.data.get(key, 0) for key in ("batch_size", "accumulate"))
        if batch_size % (max(accumulate, 1) * nproc_per_node):
            raise ValueError(f"must divide batch_size / accumulate = {batch_size} / {accumulate} without remainder")
        return nproc_per_node

    @field_validator("numerics")
    @classmethod
    def _portable_has_one_arithmetic(cls, numerics: str, info: ValidationInfo) -> str:
        kept: dict[str, tuple[object, ...]] = {
            "device": ("auto", "cpu"),
            "precision": ("fp32",),
            "matmul": ("auto",),
            "nproc_per_node": (1,),
        }
        for key, values in kept.items():
            now = info.data.get(key, values[0])
            if numerics == "portable" and now not in values:
                raise ValueError(f"needs {key}: {' or '.join(map(str, values))} (now {now}); or use numerics: native")
        return numerics
