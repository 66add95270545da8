"""Keys that more than one of train and evaluate read: how numbers are computed and text is sampled."""

from typing import Literal

from pydantic import Field

from reprogpt.params import Params


class SharedParams(Params):
    """Common to `train` and `evaluate`."""

    # The one encoding whose vocabulary is installed with the project and fits the GPT-2 checkpoint.
    encoding: Literal["gpt2"]
    seed: int = Field(ge=0, le=2**63 - 1)
    batch_size: int = Field(ge=1)
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["fp32", "bf16"]
    matmul: Literal["auto", "torch", "onednn"]
    start_context: str = Field(min_length=1, description="text of at least one character")
    max_new_tokens: int = Field(ge=1)
