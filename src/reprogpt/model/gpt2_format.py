"""The model on disk: a Hugging Face GPT-2 directory, which `transformers` loads as is.

GPT-2 fuses query, key and value into one matrix and stores its matrices transposed, (in, out). Reading and writing
only rearrange entries, so float32 weights keep their bits.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reprogpt.errors import ModelError
from reprogpt.files import atomic_path, read_json_or_empty, write_json_atomic
from reprogpt.model.gpt import GPTConfig, GPTModel

CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"
# The GPTConfig that the weights were trained with: config.json may be edited, and not all of its values change the
# shape of a tensor. Not in the weights' metadata, whose keys safetensors writes in random order.
TRAINED_CONFIG = "gpt_config.json"
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
# Our own keys, left out where they don't apply.
BEST_STEP = "best_step"  # step of the evaluation whose weights are stored, if they are not the last step's
DOCUMENTS = "trained_on_documents"  # true: the training tokens contained <|endoftext|>
# Within a block: our module -> GPT-2's, and whether GPT-2 stores its matrix transposed.
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
# With these settings `transformers` computes the same logits.
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
# Keys of GPT-2's config.json that are constants of this model, and the values equal to them; GPT-2's default first.
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
    """Write the weights, model.safetensors (float32), and three files of settings into folder, each atomically.

    weights: to store instead of the model's own, as GPTModel.weights() gives them; needed for a sharded model.
    best_step: 0-based step of the evaluation that the weights are from; None for the last step's.
    on_documents: whether the training tokens contained an end of text.
    Raises ModelError if the weights can't be written.
    """
    config = {gpt2: getattr(model.config, ours) for ours, gpt2 in _CONFIG_KEYS.items()}
    dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop"), model.config.drop_rate)
    origin: dict[str, Any] = {} if best_step is None else {BEST_STEP: best_step}
    if on_documents:
        origin[DOCUMENTS] = True
    # Tools other than `transformers` read n_ctx.
    sizes = {"n_ctx": model.config.context_length, **config}
    write_json_atomic(folder / CONFIG, {**_FIXED_CONFIG, **dropouts, **sizes, **origin})
    # Without max_length, `transformers` generates past the last position.
    end = {key: _FIXED_CONFIG["eos_token_id"] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json_atomic(folder / GENERATION, {**end, "max_length": model.config.context_length})
    write_json_atomic(folder / TRAINED_CONFIG, asdict(model.config))
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
        temporary.chmod((folder / CONFIG).stat().st_mode)  # by the umask; safetensors creates it with mode 600


def load_model(folder: Path) -> GPTModel:
    """Load what save_model wrote: a GPTModel in eval mode, on the CPU.

    Raises ModelError if a file is missing or damaged, was not written by this project, or does not fit the other.
    """
    try:
        return _load(folder)
    except ModelError as error:
        raise ModelError(f"{error}\n{_REMEDY}") from None


def _load(folder: Path) -> GPTModel:
    config = _own_config(folder / CONFIG)
    path = folder / WEIGHTS
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is missing, cut short or not a safetensors file: {error}") from None
    require_shapes(stored, _outer_shapes(config), path)
    with torch.device("meta"):  # shapes only: the stored weights are assigned below
        model = GPTModel(config)
        expected = to_gpt2(model.state_dict(), config)
    require_tensors(stored, expected, path)
    _require_trained_config(config, folder)
    model.load_state_dict(from_gpt2(stored, config), assign=True)
    model.tie_head()  # assigning made two parameters of one
    return model.eval()


def best_step(folder: Path) -> int | None:
    """The 0-based step of the evaluation whose weights are stored; None: they are the last step's.

    Raises ModelError if config.json can't be read.
    """
    step = read_config(folder / CONFIG).get(BEST_STEP)
    return step if type(step) is int else None


def trained_on_documents(folder: Path) -> bool:
    """Whether the training tokens contained an end of text. Raises ModelError if config.json can't be read."""
    return read_config(folder / CONFIG).get(DOCUMENTS) is True


def read_config(path: Path) -> dict[str, Any]:
    """A GPT-2 directory's config.json. Raises ModelError if it can't be read or describes another kind of model."""
    try:
        content = path.read_text("utf-8")
        require_no_lfs_pointer(content.encode(), path)
        stored = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is missing or not readable: {error}") from None
    if not isinstance(stored, dict):
        raise ModelError(f"{path} holds a {type(stored).__name__}, not GPT-2's keys")
    if stored.get("model_type") != "gpt2":
        raise ModelError(f"{path} has model_type {stored.get('model_type')}, not gpt2")
    return stored


def require_no_lfs_pointer(content: bytes, path: Path) -> None:
    """Raise ModelError if Git left a pointer in place of the file."""
    if content.startswith(_LFS_POINTER):
        raise ModelError(
            f"{path} is a Git LFS pointer of {len(content)} bytes, not the file; fetch it there with\n"
            "  git lfs install && git lfs pull"
        )


def config_problems(stored: Mapping[str, Any]) -> list[str]:
    """Values of a GPT-2 directory's config.json that have the wrong type or that this model can't have.

    Missing keys are no problem.
    """
    problems = []
    for key in SIZES.values():
        if key in stored and not (type(stored[key]) is int and stored[key] >= 1):
            problems.append(f"{key} is {_shown(stored[key])}, not a whole number of at least 1")
    if not problems and stored.get("n_embd", 0) % stored.get("n_head", 1):
        problems.append(f"n_head is {stored['n_head']}, which does not divide n_embd = {stored['n_embd']}")
    for key, allowed in FIXED.items():
        value = stored.get(key, allowed[0])
        if type(value) is not type(allowed[0]) or value not in allowed:
            choices = " or ".join(map(repr, allowed))
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
    """_OUTER_NAMES, without a tied head's: `transformers` does not store it either."""
    return {ours: gpt2 for ours, gpt2 in _OUTER_NAMES.items() if not (config.tie_weights and ours == "out_head.weight")}


def _block_prefixes(config: GPTConfig) -> list[tuple[str, str]]:
    return [(f"trf_blocks.{i}.", _block_prefix(i)) for i in range(config.n_layers)]


def _block_prefix(layer: int) -> str:
    return f"transformer.h.{layer}."


def _require_trained_config(config: GPTConfig, folder: Path) -> None:
    """Raise ModelError naming the first value that is not the one that the weights were trained with.

    It is not known of models that were saved before TRAINED_CONFIG was written.
    """
    trained = read_json_or_empty(folder / TRAINED_CONFIG)
    for field, value in asdict(config).items():
        if field in trained and trained[field] != value:
            raise ModelError(
                f"{folder / CONFIG}: {_CONFIG_KEYS[field]} is {_shown(value)}, but the weights were trained with "
                f"{_shown(trained[field])}"
            )


def _own_config(path: Path) -> GPTConfig:
    """The config of a directory that save_model wrote."""
    stored = read_config(path)
    for key in _CONFIG_KEYS.values():
        if key not in stored:
            raise ModelError(f"{path} has no {key!r}: not a model of this project")
    problems = config_problems(stored)
    drop_rate = stored["resid_pdrop"]
    if type(drop_rate) not in (int, float) or not 0 <= drop_rate < 1:
        problems.append(f"resid_pdrop is {_shown(drop_rate)}, not a number of at least 0 and below 1")
    if type(stored["qkv_bias"]) is not bool:
        problems.append(f"qkv_bias is {_shown(stored['qkv_bias'])}, not true or false")
    if problems:
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise ModelError(f"{path} does not describe a model of this project:\n{listing}")
    return GPTConfig(**{ours: stored[gpt2] for ours, gpt2 in _CONFIG_KEYS.items()})


def _shown(value: object) -> str:
    """A value for a message, cut if it is long. Quotes tell a string from a number."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _outer_shapes(config: GPTConfig) -> dict[str, list[int]]:
    """The tensors that show each size of the model. A wrong size may be too large to build even a meta model with."""
    return {
        _OUTER_NAMES["tok_emb.weight"]: [config.vocab_size, config.emb_dim],
        _OUTER_NAMES["pos_emb.weight"]: [config.context_length, config.emb_dim],
        f"{_block_prefix(config.n_layers - 1)}ln_1.weight": [config.emb_dim],
    }


def require_tensors(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise ModelError unless stored has float32 tensors of the same names and shapes as expected, and no others.

    path: of the file with the stored tensors, for the message.
    """
    require_shapes(stored, {name: list(tensor.shape) for name, tensor in expected.items()}, path)
    for name in sorted(stored.keys() - expected.keys()):
        raise ModelError(f"{path} has an unknown tensor {name}")


def require_shapes(stored: Mapping[str, Tensor], shapes: Mapping[str, list[int]], path: Path) -> None:
    """Raise ModelError for the first of these tensors that stored lacks or has in another shape or dtype."""
    for name in sorted(shapes.keys() - stored.keys()):
        raise ModelError(f"{path} lacks tensor {name}")
    for name, shape in shapes.items():
        tensor = stored[name]
        if list(tensor.shape) != shape or tensor.dtype != torch.float32:
            actual = f"{tensor.dtype} {list(tensor.shape)}"
            raise ModelError(f"{path}: tensor {name} is {actual}, but the configuration asks for float32 {shape}")
