"""Builds a training at step 0 from token ids and parameters: rows, plan, model, optimizer and randomness."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from reprogpt.data.tokens import Tokens, load_encoding, read_tokens
from reprogpt.data.windows import windows
from reprogpt.distributed.parallel import LossFunction, shard_model, wrap_ddp
from reprogpt.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from reprogpt.errors import DataError, DeviceError
from reprogpt.model.gpt import GPTConfig, GPTModel
from reprogpt.model.import_weights import load_initial_weights
from reprogpt.numerics.device import Numerics
from reprogpt.params.train import TrainParams
from reprogpt.training.batches import BatchLoader, SplitRows
from reprogpt.training.loss import NextTokenLoss
from reprogpt.training.randomness import (
    BookRandomness,
    IndependentRandomness,
    RandomnessPolicy,
    needs_recompute_context,
)
from reprogpt.training.schedule import Plan, plan_training

# CUDA kernels run asynchronously: copying the metrics of 16 steps together costs one wait instead of 16, and still
# shows the loss often enough. On the CPU there is nothing to wait for.
GPU_LOG_INTERVAL = 16
MAX_CUDA_GRAPH_TOKENS = 4096  # per batch; graphs gained nothing measurable at 32 x 1,024 tokens


@dataclass
class Training:
    """Everything that the training loop reads and changes.

    A step changes the model, the optimizer, step and (book policy) randomness, and nothing else.

    loss_fn: (inputs, targets) -> mean loss; its gradients are the mean over all processes.
    log_interval: steps whose metrics are copied from the device together.
    initial_weights_tags: started_from_sha256, the digest of init_from's weights; {} for weights drawn from the seed.
    step: 0-based number of the next step.
    """

    params: TrainParams
    numerics: Numerics
    plan: Plan
    train_rows: SplitRows
    val_rows: SplitRows
    loader: BatchLoader
    prompt: list[int]
    randomness: RandomnessPolicy
    model: GPTModel
    optimizer: torch.optim.AdamW
    loss_fn: LossFunction
    log_interval: int
    group: ProcessGroup
    initial_weights_tags: dict[str, str] = field(default_factory=dict)
    step: int = 0

    @property
    def size(self) -> dict[str, int]:
        """steps_per_epoch, total_steps, warmup_steps and num_parameters."""
        num_parameters = sum(tensor.numel() for tensor in self.model.parameters())
        return self.plan.lengths | {"num_parameters": num_parameters}


def build_training(
    train_tokens: Path, val_tokens: Path, *, params: TrainParams, numerics: Numerics, group: ProcessGroup
) -> Training:
    """Build a training from the token files of both splits.

    Raises what training_from_ids raises, and DataError if a file can't be used.
    """
    prompt = load_encoding(params.encoding).encode_ordinary(params.start_context)
    train_ids = read_tokens(train_tokens, vocab_size=params.vocab_size)
    val_ids = read_tokens(val_tokens, vocab_size=params.vocab_size)
    return training_from_ids(train_ids, val_ids, prompt=prompt, params=params, numerics=numerics, group=group)


def training_from_ids(
    train_ids: Tokens,
    val_ids: Tokens,
    *,
    prompt: list[int],
    params: TrainParams,
    numerics: Numerics,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Training:
    """Build a training at step 0: cut rows, plan the steps, initialize the model, create the optimizer.

    Weights are drawn on the CPU, so every device starts from the same ones. With init_from they are drawn as well
    and then replaced, so that later draws do not depend on init_from.
    Raises DataError if a split or the prompt does not fit the parameters, DeviceError if the device does not support
    compile, ParamsError if init_from can't be used.
    """
    if max(prompt) >= params.vocab_size:
        raise DataError(f"start_context holds token id {max(prompt)}, but vocab_size={params.vocab_size}")
    _require_compilable(params, numerics)
    _require_equal_shards(params, group)
    train_rows = _split_rows("training", train_ids, params, stride=params.stride)
    val_rows = _split_rows("validation", val_ids, params, stride=params.context_length)
    plan = plan_training(len(train_rows.inputs), params)
    randomness = _randomness(params, numerics, group)
    randomness.seed_weights()
    config = GPTConfig(**{key: getattr(params, key) for key in GPTConfig.__dataclass_fields__})
    model = GPTModel(
        config,
        randomness.dropout,
        activation_checkpointing=params.activation_checkpointing,
        recompute_context=randomness.recompute_context if needs_recompute_context(numerics.device) else None,
    )
    initial_weights_tags = _load_init_from(model, params, group) if params.init_from else {}
    shard_model(model, numerics.device, params.parallel, group)
    cuda_graphs = params.compile and _is_launch_bound(params, group)
    loss = NextTokenLoss(model, compiled=params.compile, cuda_graphs=cuda_graphs)
    loss_fn = wrap_ddp(loss, numerics.device, params.parallel, group)
    loader = BatchLoader(
        train_rows, randomness, plan, batch_size=params.batch_size, shard=group.shard, device=numerics.device
    )
    return Training(
        params=params,
        numerics=numerics,
        plan=plan,
        train_rows=train_rows,
        val_rows=val_rows,
        loader=loader,
        prompt=prompt,
        randomness=randomness,
        model=model,
        optimizer=_optimizer(model, params),
        loss_fn=loss_fn,
        log_interval=1 if numerics.device.type == "cpu" else GPU_LOG_INTERVAL,
        group=group,
        initial_weights_tags=initial_weights_tags,
    )


def _optimizer(model: GPTModel, params: TrainParams) -> torch.optim.AdamW:
    """AdamW with weight decay on all parameters; with decay_matrices_only, on those of two or more dimensions."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if params.decay_matrices_only:
        matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
        others = [parameter for parameter in parameters if parameter.ndim < 2]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups,
        lr=params.peak_lr,
        betas=(params.beta1, params.beta2),
        eps=params.eps,
        weight_decay=params.weight_decay,
        fused=True,
    )


def _is_launch_bound(params: TrainParams, group: ProcessGroup) -> bool:
    """Whether the host takes longer to launch a step's kernels than the GPU to run them, and CUDA graphs are possible.

    They are not possible with micro-batches, whose gradients must survive the next forward pass, nor with several
    processes.
    """
    tokens = params.batch_size * params.context_length
    return tokens <= MAX_CUDA_GRAPH_TOKENS and params.accumulate == 1 and group.size == 1


def _randomness(params: TrainParams, numerics: Numerics, group: ProcessGroup) -> RandomnessPolicy:
    if params.random_order == "book":
        return BookRandomness(params.seed, numerics.device)
    return IndependentRandomness(params.seed, numerics.device, group.rank)


def _load_init_from(model: GPTModel, params: TrainParams, group: ProcessGroup) -> dict[str, str]:
    """Load init_from into the model of every process; rank 0 reads the file. Returns rank 0's tags, {} elsewhere."""
    initial = None
    if group.is_first:
        initial = load_initial_weights(params.init_from, params.init_from_sha256, model.config)
    for name, tensor in model.weights().items():
        group.broadcast_tensor(initial.weights[name] if initial else None, tensor)
    return {"started_from_sha256": initial.sha256} if initial else {}


def _split_rows(split: str, ids: Tokens, params: TrainParams, *, stride: int) -> SplitRows:
    try:
        inputs, targets = windows(
            ids, context_length=params.context_length, stride=stride, vocab_size=params.vocab_size
        )
    except DataError as error:
        raise DataError(f"{split} text: {error}") from None
    return SplitRows(inputs, targets)


def _require_equal_shards(params: TrainParams, group: ProcessGroup) -> None:
    if params.batch_size % (params.accumulate * group.size):
        raise DataError(
            f"batch_size / accumulate = {params.batch_size} / {params.accumulate} can't be split equally among "
            f"{group.size} processes; change one of the three"
        )


def _require_compilable(params: TrainParams, numerics: Numerics) -> None:
    if params.compile and numerics.device.type == "cpu":
        raise DeviceError(
            "compile: true needs a GPU; on the CPU it is no faster, and the weights' bits differ from run to run. "
            "Set compile to false"
        )
