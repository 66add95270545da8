"""The model on disk: a Hugging Face GPT-2 directory, which `transformers` loads as it is.

GPT-2 fuses query, key and value into one matrix and stores its matrices transposed, (in, out). Reading and writing
only rearranges entries, so the float32 weights keep their bits.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reprogpt.errors import ModelError
from reprogpt.files import atomic_path, write_json_atomic
from reprogpt.model.gpt import GPTConfig, GPTModel

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# GPTConfig field -> key of GPT-2's config.json
SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "emb_dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
}
_CONFIG_KEYS = {
    **SIZES,
    "drop_rate": "resid_pdrop",
    "qkv_bias": "qkv_bias",  # not a key of GPT-2, which always has these biases: zeros are written
}
# within a block: our module -> GPT-2's, and whether GPT-2 stores its matrix transposed
_BLOCK_NAMES = {
    "att.out_proj": ("attn.c_proj", True),
    "ff.layers.0": ("mlp.c_fc", True),
    "ff.layers.2": ("mlp.c_proj", True),
    "norm1": ("ln_1", False),
    "norm2": ("ln_2", False),
}
_OUTER_NAMES = {
    "tok_emb.weight": "transformer.wte.weight",
    "pos_emb.weight": "transformer.wpe.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "final_norm.bias": "transformer.ln_f.bias",
    "out_head.weight": "lm_head.weight",
}
_QKV = ("att.W_query", "att.W_key", "att.W_value")
# Settings under which `transformers` computes the same logits.
_FIXED_CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "dtype": "float32",
}
_REMEDY = "Restore it with `dvc checkout`, or train again with `dvc repro -f train`"


def save_model(folder: Path, model: GPTModel, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write config.json and model.safetensors (float32) into folder, each atomically.

    weights: the full weights, for a model that is sharded.
    """
    config = {gpt2: getattr(model.config, ours) for ours, gpt2 in _CONFIG_KEYS.items()}
    dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop"), model.config.drop_rate)
    write_json_atomic(folder / CONFIG, {**_FIXED_CONFIG, **dropouts, **config})
    full = model.state_dict() if weights is None else weights
    on_cpu = {name: tensor.detach().cpu() for name, tensor in full.items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(to_gpt2(on_cpu, model.config), temporary, metadata={"format": "pt"})
        os.chmod(temporary, 0o644)  # noqa: PTH101 - safetensors creates it with mode 600


def load_model(folder: Path) -> GPTModel:
    """Load what save_model wrote: a GPTModel in eval mode, on the CPU.

    Raises ModelError if a file is missing or damaged, is not of this project, or they don't fit each other.
    """
    config = _read_config(folder / CONFIG)
    try:
        stored = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{folder / WEIGHTS} is missing, cut short or not a safetensors file: {error}. {_REMEDY}"
        ) from None
    with torch.device("meta"):  # shapes only: the stored weights are assigned below
        model = GPTModel(config)
        wanted = to_gpt2(model.state_dict(), config)
    _check_shapes(stored, wanted, folder / WEIGHTS)
    model.load_state_dict(from_gpt2(stored, config), assign=True)
    return model.eval()


def to_gpt2(weights: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """A GPTModel's weights under GPT-2's names and in its layout."""
    stored = {gpt2: weights[ours] for ours, gpt2 in _OUTER_NAMES.items()}
    for ours, gpt2 in _block_prefixes(config):
        qkv = torch.cat([weights[f"{ours}{name}.weight"] for name in _QKV])
        biases = [weights[f"{ours}{name}.bias"] for name in _QKV] if config.qkv_bias else [torch.zeros(len(qkv))]
        stored[f"{gpt2}attn.c_attn.weight"] = qkv.T.contiguous()  # (3 D, D) -> (D, 3 D)
        stored[f"{gpt2}attn.c_attn.bias"] = torch.cat(biases)
        for name, (other, transposed) in _BLOCK_NAMES.items():
            matrix = weights[f"{ours}{name}.weight"]
            stored[f"{gpt2}{other}.weight"] = matrix.T.contiguous() if transposed else matrix
            stored[f"{gpt2}{other}.bias"] = weights[f"{ours}{name}.bias"]
    return stored


def from_gpt2(stored: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The inverse of to_gpt2. Query, key and value biases are dropped if the config has none."""
    weights = {ours: stored[gpt2] for ours, gpt2 in _OUTER_NAMES.items()}
    for ours, gpt2 in _block_prefixes(config):
        for suffix in ("weight", "bias") if config.qkv_bias else ("weight",):
            fused = stored[f"{gpt2}attn.c_attn.{suffix}"]
            parts = (fused.T if suffix == "weight" else fused).chunk(3)
            weights |= {f"{ours}{name}.{suffix}": part.contiguous() for name, part in zip(_QKV, parts, strict=True)}
        for name, (other, transposed) in _BLOCK_NAMES.items():
            matrix = stored[f"{gpt2}{other}.weight"]
            weights[f"{ours}{name}.weight"] = matrix.T.contiguous() if transposed else matrix
            weights[f"{ours}{name}.bias"] = stored[f"{gpt2}{other}.bias"]
    return weights


def _block_prefixes(config: GPTConfig) -> list[tuple[str, str]]:
    return [(f"trf_blocks.{i}.", f"transformer.h.{i}.") for i in range(config.n_layers)]


def _read_config(path: Path) -> GPTConfig:
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        fields = {ours: stored[gpt2] for ours, gpt2 in _CONFIG_KEYS.items()}
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path} is missing or not readable: {error}. {_REMEDY}") from None
    except KeyError as error:
        raise ModelError(f"{path} has no {error}: not a model of this project. {_REMEDY}") from None
    return GPTConfig(**fields)


def _check_shapes(stored: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    for name in sorted(wanted.keys() ^ stored.keys()):
        fault = "lacks tensor" if name in wanted else "has an unknown tensor"
        raise ModelError(f"{path} {fault} {name}. {_REMEDY}")
    for name, tensor in wanted.items():
        if stored[name].shape != tensor.shape or stored[name].dtype != torch.float32:
            found = f"{stored[name].dtype} {list(stored[name].shape)}"
            raise ModelError(
                f"{path}: tensor {name} is {found}, but {CONFIG} asks for float32 {list(tensor.shape)}. {_REMEDY}"
            )
