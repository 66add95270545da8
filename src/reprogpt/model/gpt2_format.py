"""The model on disk: a Hugging Face GPT-2 directory, which `transformers` loads as it is.

GPT-2 fuses query, key and value into one matrix and stores its matrices transposed, (in, out). Reading and writing
only rearranges entries, so the float32 weights keep their bits.
"""

import json
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
    "tie_weights": "tie_word_embeddings",
}
# Not keys of GPT-2, and left out where they don't apply.
BEST_STEP = "best_step"  # of the evaluation whose weights they are, if not of the last step
DOCUMENTS = "trained_on_documents"  # true: the training tokens had <|endoftext|>
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
# Keys of GPT-2's config.json that this model fixes, and the values that match it; the first is GPT-2's default.
FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_REMEDY = "Restore it with `dvc checkout`, or train again with `dvc repro -f train`"


def save_model(
    folder: Path,
    model: GPTModel,
    weights: Mapping[str, Tensor] | None = None,
    *,
    best_step: int | None = None,
    on_documents: bool = False,
) -> None:
    """Write config.json and model.safetensors (float32) into folder, each atomically.

    weights: the full weights, for a model that is sharded, or others than its present ones; a tied head is one tensor.
    best_step: 0-based step of the evaluation whose weights they are, None for those of a training's last step.
    on_documents: whether the training tokens had an end of text.
    Raises ModelError if the weights can't be written.
    """
    config = {gpt2: getattr(model.config, ours) for ours, gpt2 in _CONFIG_KEYS.items()}
    dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop"), model.config.drop_rate)
    origin: dict[str, Any] = {} if best_step is None else {BEST_STEP: best_step}
    if on_documents:
        origin[DOCUMENTS] = True
    write_json_atomic(folder / CONFIG, {**_FIXED_CONFIG, **dropouts, **config, **origin})
    full = model.weights() if weights is None else weights
    on_cpu = {name: tensor.detach().cpu() for name, tensor in full.items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        try:
            save_file(to_gpt2(on_cpu, model.config), temporary, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:  # the latter also for a full disk
            size = sum(tensor.nbytes for tensor in on_cpu.values())
            raise ModelError(
                f"{folder / WEIGHTS} can't be written: {error}; it has {size / 1e9:.1f} GB. Make room, or make the "
                "folder writable, and run the same command again"
            ) from None
        temporary.chmod((folder / CONFIG).stat().st_mode)  # as the umask says: safetensors creates it with mode 600


def load_model(folder: Path) -> GPTModel:
    """Load what save_model wrote: a GPTModel in eval mode, on the CPU.

    Raises ModelError if a file is missing or damaged, is not of this project, or they don't fit each other.
    """
    config = _own_config(folder / CONFIG)
    try:
        stored = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{folder / WEIGHTS} is missing, cut short or not a safetensors file: {error}. {_REMEDY}"
        ) from None
    _check_sizes(stored, config, folder / WEIGHTS)
    with torch.device("meta"):  # shapes only: the stored weights are assigned below
        model = GPTModel(config)
        wanted = to_gpt2(model.state_dict(), config)
    _check_shapes(stored, wanted, folder / WEIGHTS)
    model.load_state_dict(from_gpt2(stored, config), assign=True)
    model.tie_head()  # assigning has made two parameters of one
    return model.eval()


def best_step(folder: Path) -> int | None:
    """The 0-based step of the evaluation whose weights save_model wrote; None: they are those of the last step.

    Raises ModelError if config.json can't be read.
    """
    step = read_config(folder / CONFIG).get(BEST_STEP)
    return step if type(step) is int else None


def trained_on_documents(folder: Path) -> bool:
    """Whether the training tokens of the model had an end of text. Raises ModelError if config.json can't be read."""
    return read_config(folder / CONFIG).get(DOCUMENTS) is True


def read_config(path: Path) -> dict[str, Any]:
    """A GPT-2 directory's config.json. Raises ModelError if it is unreadable, or of another kind of model."""
    try:
        content = path.read_text("utf-8")
        require_no_lfs_pointer(content.encode(), path)
        stored = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is missing or not readable: {error}") from None
    if not isinstance(stored, dict):
        raise ModelError(f"{path} holds {type(stored).__name__}, not GPT-2's keys")
    if stored.get("model_type") != "gpt2":
        raise ModelError(f"{path} has model_type {stored.get('model_type')}, not gpt2")
    return stored


def require_no_lfs_pointer(content: bytes, path: Path) -> None:
    """Raise ModelError if Git left a pointer where the file should be."""
    if content.startswith(_LFS_POINTER):
        raise ModelError(
            f"{path} is a Git LFS pointer of {len(content)} bytes, not the file; fetch it there with\n"
            "  git lfs install && git lfs pull"
        )


def config_problems(stored: Mapping[str, Any]) -> list[str]:
    """What in a GPT-2 directory's config.json is of a wrong type, or can't be in this model. Missing keys are none."""
    problems = []
    for key in SIZES.values():
        if key in stored and not (type(stored[key]) is int and stored[key] >= 1):
            problems.append(f"{key} is {_shown(stored[key])}, not a whole number of at least 1")
    if not problems and stored.get("n_embd", 0) % stored.get("n_head", 1):
        problems.append(f"n_head is {stored['n_head']}, which does not divide n_embd = {stored['n_embd']}")
    for key, allowed in FIXED.items():
        value = stored.get(key, allowed[0])
        if type(value) is not type(allowed[0]) or value not in allowed:
            choices = " or ".join(map(str, allowed))
            problems.append(f"{key} is {_shown(value)}, but this model can only have {choices}")
    width, num_features = stored.get("n_inner"), stored.get("n_embd")
    if width is not None and not (type(width) is int and type(num_features) is int and width == 4 * num_features):
        problems.append(f"n_inner is {_shown(width)}, but this model can only have 4 * n_embd or null")
    if type(stored.get("tie_word_embeddings", True)) is not bool:
        problems.append(f"tie_word_embeddings is {_shown(stored['tie_word_embeddings'])}, not true or false")
    return problems


def to_gpt2(weights: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """A GPTModel's weights under GPT-2's names and in its layout."""
    stored = {gpt2: weights[ours] for ours, gpt2 in _outer_names(config).items()}
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
    """The inverse of to_gpt2. Query, key and value biases are dropped if the config has none.

    A tied head is under both of its names, one tensor.
    """
    weights = {ours: stored[gpt2] for ours, gpt2 in _outer_names(config).items()}
    weights.setdefault("out_head.weight", weights["tok_emb.weight"])
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


def _outer_names(config: GPTConfig) -> dict[str, str]:
    """_OUTER_NAMES without the head's, where it is tied, as `transformers` stores it."""
    return {ours: gpt2 for ours, gpt2 in _OUTER_NAMES.items() if not (config.tie_weights and ours == "out_head.weight")}


def _block_prefixes(config: GPTConfig) -> list[tuple[str, str]]:
    return [(f"trf_blocks.{i}.", _block_prefix(i)) for i in range(config.n_layers)]


def _block_prefix(layer: int) -> str:
    return f"transformer.h.{layer}."


def _own_config(path: Path) -> GPTConfig:
    """The config of a directory that save_model wrote."""
    try:
        stored = read_config(path)
    except ModelError as error:
        raise ModelError(f"{error}. {_REMEDY}") from None
    for key in _CONFIG_KEYS.values():
        if key not in stored:
            raise ModelError(f"{path} has no {key!r}: not a model of this project. {_REMEDY}")
    problems = config_problems(stored)
    drop_rate = stored["resid_pdrop"]
    if type(drop_rate) not in (int, float) or not 0 <= drop_rate < 1:
        problems.append(f"resid_pdrop is {_shown(drop_rate)}, not a number of at least 0 and below 1")
    if type(stored["qkv_bias"]) is not bool:
        problems.append(f"qkv_bias is {_shown(stored['qkv_bias'])}, not true or false")
    if problems:
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise ModelError(f"{path} does not describe a model of this project:\n{listing}\n{_REMEDY}")
    return GPTConfig(**{ours: stored[gpt2] for ours, gpt2 in _CONFIG_KEYS.items()})


def _shown(value: object) -> str:
    """A value as in a message; of a long one the beginning."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _check_sizes(stored: Mapping[str, Tensor], config: GPTConfig, path: Path) -> None:
    """Compare the sizes with the stored shapes: a model of a wrong size may be too large to build, even unfilled."""
    sizes = {"tok_emb.weight": config.vocab_size, "pos_emb.weight": config.context_length}
    for ours, rows in sizes.items():
        name, shape = _OUTER_NAMES[ours], [rows, config.emb_dim]
        if name not in stored:
            raise ModelError(f"{path} lacks tensor {name}. {_REMEDY}")
        _check_tensor(stored[name], name, shape, path)
    last = f"{_block_prefix(config.n_layers - 1)}ln_1.weight"
    if last not in stored:
        raise ModelError(f"{path} lacks tensor {last}, of the last of n_layer = {config.n_layers} blocks. {_REMEDY}")


def _check_shapes(stored: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    for name in sorted(wanted.keys() ^ stored.keys()):
        fault = "lacks tensor" if name in wanted else "has an unknown tensor"
        raise ModelError(f"{path} {fault} {name}. {_REMEDY}")
    for name, tensor in wanted.items():
        _check_tensor(stored[name], name, list(tensor.shape), path)


def _check_tensor(tensor: Tensor, name: str, shape: list[int], path: Path) -> None:
    if list(tensor.shape) != shape or tensor.dtype != torch.float32:
        found = f"{tensor.dtype} {list(tensor.shape)}"
        raise ModelError(f"{path}: tensor {name} is {found}, but {CONFIG} asks for float32 {shape}. {_REMEDY}")
