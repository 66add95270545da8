"""What the `train` stage reads from params.yaml."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from reprogpt.params.loader import require_divisor
from reprogpt.params.shared import MAX_COUNT, SharedParams

# No machine can train these sizes yet. Beyond them, the bytes of a tensor would not fit into 64 bits.
MAX_VOCAB_SIZE = 1 << 24
MAX_CONTEXT_LENGTH = 1 << 24
MAX_EMB_DIM = 1 << 18
MAX_LAYERS = 1 << 14
MIN_EPS = 1e-37  # in float32, which the optimizer uses, a smaller value may be 0, and 0 / 0 is not an update


class TrainParams(SharedParams):
    """Model, schedule, optimizer, and how often to evaluate, sample and save.

    A validator sees the valid keys declared above its own, hence the order: bounds first, then what they bound.
    """

    vocab_size: int = Field(ge=1, le=MAX_VOCAB_SIZE)
    context_length: int = Field(ge=1, le=MAX_CONTEXT_LENGTH)
    emb_dim: int = Field(ge=1, le=MAX_EMB_DIM)
    n_heads: int = Field(ge=1, le=MAX_EMB_DIM)
    n_layers: int = Field(ge=1, le=MAX_LAYERS)
    drop_rate: float = Field(ge=0, lt=1)
    qkv_bias: bool
    tie_weights: bool
    init_from: str = Field(description='a folder with GPT-2 weights, or "" for weights drawn from the seed')
    init_from_sha256: str = Field(
        pattern=r"^([0-9a-f]{64})?$", description='64 hexadecimal digits in lower case, or "" to accept any weights'
    )
    stride: int = Field(ge=1, le=MAX_CONTEXT_LENGTH)
    n_epochs: int = Field(ge=1, le=MAX_COUNT)
    initial_lr: float = Field(ge=0)
    min_lr: float = Field(ge=0)
    peak_lr: float = Field(gt=0)
    warmup_ratio: float = Field(ge=0, lt=1)
    lr_decay: Literal["cosine", "linear", "wsd", "none"]
    decay_ratio: float = Field(gt=0, le=1)
    weight_decay: float = Field(ge=0)
    decay_matrices_only: bool
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    eps: float = Field(ge=MIN_EPS, le=1)
    max_norm: float | None = Field(gt=0, description="a number above 0, or null: gradients are never clipped")
    clip_from: Literal["warmup", "start"]
    orig_book_version: bool
    eval_freq: int = Field(ge=0, le=MAX_COUNT)
    eval_iter: int = Field(ge=1, le=MAX_COUNT)
    keep: Literal["last", "best"]
    sample_freq: int = Field(ge=0, le=MAX_COUNT)
    save_seconds: float = Field(ge=0)
    activation_checkpointing: bool
    compile: bool
    parallel: Literal["ddp", "fsdp"]
    torchrun_args: str = Field(description="arguments of torchrun, or empty")
    random_order: Literal["independent", "book"]

    @field_validator("n_heads")
    @classmethod
    def _heads_divide_the_embedding(cls, n_heads: int, info: ValidationInfo) -> int:
        return require_divisor(n_heads, "emb_dim", info)

    @field_validator("init_from")
    @classmethod
    def _stays_in_the_repository_or_is_absolute(cls, init_from: str) -> str:
        # `reprogpt verify` repeats a training in a temporary clone and copies only folders of the repository into it.
        path = Path(init_from)
        if ".." in path.parts and not path.is_absolute():
            raise ValueError("must not leave the repository with ..; use an absolute path")
        return init_from

    @field_validator("init_from_sha256")
    @classmethod
    def _pins_weights(cls, init_from_sha256: str, info: ValidationInfo) -> str:
        if init_from_sha256 and not info.data.get("init_from", "refused"):
            raise ValueError('pins nothing while init_from is "": set it to "", too, or name the folder')
        return init_from_sha256

    @field_validator("stride")
    @classmethod
    def _stride_skips_no_token(cls, stride: int, info: ValidationInfo) -> int:
        context_length = info.data.get("context_length", stride)
        if stride > context_length:
            raise ValueError(f"must be at most context_length={context_length}, or tokens are never trained on")
        return stride

    @field_validator("peak_lr")
    @classmethod
    def _peak_is_the_highest_rate(cls, peak_lr: float, info: ValidationInfo) -> float:
        for key in ("initial_lr", "min_lr"):
            if peak_lr < info.data.get(key, 0):
                raise ValueError(f"must be at least {key}={info.data[key]}")
        return peak_lr

    @field_validator("decay_ratio")
    @classmethod
    def _warmup_and_decay_fit_the_training(cls, decay_ratio: float, info: ValidationInfo) -> float:
        warmup_ratio = info.data.get("warmup_ratio", 0.0)
        if info.data.get("lr_decay") == "wsd" and decay_ratio > 1 - warmup_ratio:
            raise ValueError(f"must be at most 1 - warmup_ratio = {1 - warmup_ratio:g}: wsd decays after warmup")
        return decay_ratio

    @field_validator("orig_book_version")
    @classmethod
    def _first_printed_version_clips_from_warmup_on(cls, orig_book_version: bool, info: ValidationInfo) -> bool:
        if orig_book_version and info.data.get("clip_from") == "start":
            raise ValueError("needs clip_from: warmup; set it to false to clip from the start")
        return orig_book_version

    @field_validator("keep")
    @classmethod
    def _best_is_among_evaluations(cls, keep: str, info: ValidationInfo) -> str:
        if keep == "best" and info.data.get("eval_freq") == 0:
            raise ValueError("needs eval_freq of at least 1: with 0 nothing is evaluated; or set it to last")
        return keep

    @field_validator("parallel")
    @classmethod
    def _shards_are_not_compiled(cls, parallel: str, info: ValidationInfo) -> str:
        if parallel == "fsdp" and info.data.get("compile"):
            raise ValueError("needs compile: false; with compile: true use parallel: ddp")
        return parallel

    @field_validator("random_order")
    @classmethod
    def _book_is_read_by_one_process(cls, random_order: str, info: ValidationInfo) -> str:
        if random_order == "book" and (info.data.get("nproc_per_node", 1) > 1 or info.data.get("torchrun_args")):
            raise ValueError('needs nproc_per_node: 1 and torchrun_args: "": the book draws from one stream')
        return random_order

    @field_validator("random_order")
    @classmethod
    def _book_needs_torchs_own_arithmetic(cls, random_order: str, info: ValidationInfo) -> str:
        """Portable numerics give the book's numbers, too; of native ones, matmul: torch does."""
        is_native = info.data.get("numerics") == "native"
        if random_order == "book" and is_native and info.data.get("matmul", "torch") != "torch":
            raise ValueError(
                f"needs numerics: auto or portable, or matmul: torch (now {info.data['matmul']}), whose products gave "
                "the book's numbers"
            )
        return random_order
