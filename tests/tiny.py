"""A tiny model and a tiny training, for the tests of model and training."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from reprogpt.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from reprogpt.model.gpt import GPTConfig, GPTModel
from reprogpt.numerics.device import Numerics
from reprogpt.params.train import TrainParams
from reprogpt.training.build import Training, training_from_ids

# A model this small takes longer on two threads than on one, and far longer on a busy machine.
USUAL_NUM_THREADS = torch.get_num_threads()
torch.set_num_threads(1)

CPU = Numerics(torch.device("cpu"), "fp32", "torch")
CONFIG = GPTConfig(vocab_size=64, context_length=8, emb_dim=32, n_heads=4, n_layers=2, drop_rate=0.1, qkv_bias=False)
PARAMS: dict[str, Any] = dataclasses.asdict(CONFIG) | {
    "init_from": "",
    "init_from_sha256": "",
    "encoding": "gpt2",
    "seed": 123,
    "batch_size": 2,
    "accumulate": 1,
    "nproc_per_node": 1,
    "parallel": "ddp",
    "torchrun_args": "",
    "device": "cpu",
    "precision": "fp32",
    "matmul": "torch",
    "numerics": "native",
    "start_context": "a",
    "max_new_tokens": 3,
    "stride": 8,
    "n_epochs": 2,
    "initial_lr": 0.0001,
    "min_lr": 0.0001,
    "peak_lr": 0.001,
    "warmup_ratio": 0.2,
    "lr_decay": "cosine",
    "decay_ratio": 0.2,
    "weight_decay": 0.1,
    "decay_matrices_only": False,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "max_norm": 1.0,
    "clip_from": "warmup",
    "orig_book_version": False,
    "eval_freq": 5,
    "eval_iter": 1,
    "keep": "last",
    "sample_freq": 1,
    "save_seconds": 0.0,
    "activation_checkpointing": False,
    "compile": False,
    "random_order": "independent",
}


def tiny_model(seed: int = 0, **changes: Any) -> GPTModel:
    """An untrained model of CONFIG with changes, in train mode."""
    torch.manual_seed(seed)
    return GPTModel(dataclasses.replace(CONFIG, **changes))


def model_with_odds(odds: Mapping[int, float], **changes: Any) -> GPTModel:
    """A tiny model that gives the next token these odds at every position; other tokens have probability zero.

    The last norm's output is (1, 0, 0, …), and the output head's first column holds log(odds).
    """
    model = tiny_model(**changes)
    model.final_norm.weight.data.zero_()
    model.final_norm.bias.data.copy_(torch.eye(model.config.emb_dim)[0])
    model.out_head.weight.data.fill_(-1000.0)
    for token, odd in odds.items():
        model.out_head.weight.data[token, 0] = math.log(odd)
    return model


def tiny_training(num_rows: int = 11, group: ProcessGroup = SINGLE_PROCESS, **changes: Any) -> Training:
    """A training of PARAMS with changes on num_rows rows of 8 random tokens, with three validation rows."""
    ids = np.random.default_rng(0).integers(0, 64, 8 * (num_rows + 3) + 2).astype(np.uint16)
    cut = 8 * num_rows + 1
    params = TrainParams(**PARAMS | changes)
    return training_from_ids(ids[:cut], ids[cut:], prompt=[1, 2], params=params, numerics=CPU, group=group)


def weights_of(model: GPTModel) -> list[bytes]:
    """The bits of all weights, in order."""
    return [tensor.detach().numpy().tobytes() for tensor in model.state_dict().values()]
