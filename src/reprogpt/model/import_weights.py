"""Imports weights for `init_from`: from any Hugging Face GPT-2 directory, or under the book's own names.

Entries are rearranged and half precision is converted to float32, which is exact. What this model can't represent is
refused. Only safetensors files are read: a pickle can run code.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from reprogpt.errors import ModelError, ParamsError
from reprogpt.messages import print_message
from reprogpt.model import book_names
from reprogpt.model.gpt import GPTConfig, GPTModel
from reprogpt.model.gpt2_format import (
    CONFIG,
    SIZES,
    WEIGHTS,
    config_problems,
    from_gpt2,
    read_config,
    require_no_lfs_pointer,
    require_tensors,
    to_gpt2,
)
from reprogpt.paths import MODEL, repository_root

HEAD, EMBEDDINGS, POSITIONS = "lm_head.weight", "transformer.wte.weight", "transformer.wpe.weight"
PICKLE_SUFFIXES = (".bin", ".pth", ".pt")  # of files by `transformers` first: an optimizer.pt may be beside them
_PREFIX = "transformer."  # written by GPT2LMHeadModel, not by GPT2Model or the first published files
_PREFIXED = re.compile(r"(wte|wpe|h|ln_f)\.")
_MASKS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # causal masks, which old files hold as tensors
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class InitialWeights:
    """weights: by GPTModel's names, float32 on the CPU. sha256: of the file they were read from."""

    weights: dict[str, Tensor]
    sha256: str


def load_initial_weights(init_from: str, init_from_sha256: str, config: GPTConfig) -> InitialWeights:
    """Load the weights in the directory init_from for a GPTModel with this config.

    init_from: absolute, or relative to the main repository's root, also in a queued experiment's copy.
    init_from_sha256: of its model.safetensors; "" accepts any, with a warning.
    A tied output head stays tied with tie_weights, and otherwise becomes a copy of the token embeddings. Query, key
    and value biases that are not stored are zeros; nonzero ones need qkv_bias. If more than context_length positions
    are stored, the first ones are used. A model.safetensors without config.json must have the book's own names.
    Raises ParamsError if the folder is missing or has no such weights, if their sizes, settings or digest differ from
    those asked for, or if they are not finite.
    """
    folder = repository_root() / init_from
    try:
        content = _read_weights(folder)
        sha256 = hashlib.sha256(content).hexdigest()
        _require_digest(init_from_sha256, sha256)
        path = folder / WEIGHTS
        if (folder / CONFIG).is_file():
            weights = _from_gpt2(content, read_config(folder / CONFIG), path, config)
        else:
            weights = _from_book(content, path, config)
    except ModelError as error:
        raise ParamsError(f"init_from={init_from} can't be used: {error}") from None
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror or error}"
        raise ParamsError(f"init_from={init_from} can't be read: {reason}") from None
    if not init_from_sha256:
        print_message(
            f'warning: init_from_sha256 is "": any weights in {init_from} are accepted, and are read again when train\n'
            f"runs (`dvc repro -f train`); to pin these, set init_from_sha256 to\n{sha256}"
        )
    return InitialWeights(weights, sha256)


def _from_gpt2(content: bytes, foreign: Mapping[str, Any], path: Path, config: GPTConfig) -> dict[str, Tensor]:
    """Weights of a GPT-2 directory by GPTModel's names. content: of the file `path`. foreign: its config.json."""
    _require_same_model(foreign, config)
    stored = _normalize_names(_parse(content, path))
    if EMBEDDINGS not in stored:
        raise ModelError(
            f"{path} lacks tensor {EMBEDDINGS}; its names are like {min(stored, default='none')}. If they\n"
            "begin with a wrapper's prefix (module., _orig_mod.), save the model inside the wrapper"
        )
    if POSITIONS in stored and stored[POSITIONS].shape[:1] == (foreign[SIZES["context_length"]],):
        _take_first_positions(stored, POSITIONS, config)
    _add_omitted(stored, config, is_tied=bool(foreign.get("tie_word_embeddings", True)))
    with torch.device("meta"):  # shapes only
        expected = to_gpt2(GPTModel(config).state_dict(), config)
    require_tensors(stored, expected, path)
    return from_gpt2(stored, config)


def _from_book(content: bytes, path: Path, config: GPTConfig) -> dict[str, Tensor]:
    """As _from_gpt2, of a folder without config.json, whose tensors have the book's own names."""
    stored = _as_float32(book_names.from_book(_parse(content, path)))
    if book_names.EMBEDDINGS not in stored:
        raise ModelError(f"{path.parent} has no {CONFIG}, so it is not a GPT-2 directory")
    has_biases = book_names.QUERY_BIAS in stored
    if has_biases != config.qkv_bias:
        fault = "has" if has_biases else "lacks"
        raise ModelError(f"{path} {fault} {book_names.QUERY_BIAS}; set qkv_bias to {str(has_biases).lower()}")
    _take_first_positions(stored, book_names.POSITIONS, config)
    with torch.device("meta"):  # shapes only
        expected = GPTModel(config).state_dict()
    require_tensors(stored, expected, path)
    if config.tie_weights:
        _require_equal_head(stored, book_names.HEAD, book_names.EMBEDDINGS)
    print_message(f"init_from: without {CONFIG}, nothing tells n_heads; {config.n_heads} is params.yaml's")
    return stored


def _read_weights(folder: Path) -> bytes:
    """The whole file, read once, so that the digest is that of the weights that are used."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError(_no_weights(folder))
    content = path.read_bytes()
    require_no_lfs_pointer(content, path)
    return content


def _no_weights(folder: Path) -> str:
    """Why the folder has no model.safetensors, and what to do."""
    if folder == repository_root() / MODEL:
        return f"DVC removes {MODEL}, which train writes, before it runs: copy it elsewhere and name the copy"
    indexes = sorted(folder.glob("*.index.json"))
    if indexes:
        return (
            f"its weights are in several files ({indexes[0].name}); join them in Python, if you trust them:\n"
            '  GPT2LMHeadModel.from_pretrained(folder).save_pretrained(other, max_shard_size="100GB")'
        )
    paths = [folder] if folder.is_file() else sorted(folder.glob("*"))
    pickles = [path for suffix in PICKLE_SUFFIXES for path in paths if path.suffix == suffix]
    if pickles:
        return (
            f"{pickles[0]} is a pickle, which can run code when it is loaded; it is never read here.\n"
            f"If you trust it, convert it in Python, and name the folder with its {WEIGHTS}:\n"
            "  import torch, safetensors.torch\n"
            f"  weights = torch.load({pickles[0].name!r}, map_location='cpu', weights_only=True)\n"
            "  weights = weights.get('model_state_dict', weights)  # saved with the optimizer\n"
            "  weights = {name: tensor.clone().contiguous() for name, tensor in weights.items()}\n"
            f"  safetensors.torch.save_file(weights, 'FOLDER/{WEIGHTS}')"
        )
    if folder.is_file():
        return f"{folder} is a file; name the folder that has it as {WEIGHTS}"
    if folder.is_dir():
        return f"{folder} has no {WEIGHTS}"
    return f"there is no folder {folder}; a relative path starts at the main repository's root, also in an experiment"


def _require_digest(pinned: str, actual: str) -> None:
    if pinned not in ("", actual):
        raise ModelError(
            f"its {WEIGHTS} is not the expected file\n"
            f"  expected  init_from_sha256={pinned}\n"
            f"  got       {actual}\n"
            "To accept these weights, set init_from_sha256 to the second; otherwise correct init_from"
        )


def _require_same_model(foreign: Mapping[str, Any], config: GPTConfig) -> None:
    """Raise ModelError with every difference between the stored configuration and this model's."""
    other_sizes = []
    for ours, theirs in SIZES.items():
        size, stored_size = getattr(config, ours), foreign.get(theirs, "missing")
        has_more_positions = ours == "context_length" and type(stored_size) is int and stored_size > size
        if stored_size != size and not has_more_positions:
            other_sizes.append(f"{ours}: {size} in params.yaml, but {theirs} is {stored_size}")
    other_model = config_problems(foreign)
    advice = []
    if other_model:
        advice.append("No key of params.yaml changes what this model can only have: start from another model's weights")
    if other_sizes:
        advice.append("Set the keys of params.yaml that are named to its values")
    if advice:
        listing = "\n".join(f"  {problem}" for problem in other_model + other_sizes)
        raise ModelError(f"its {CONFIG} describes another model\n{listing}\n" + "\n".join(advice))


def _parse(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        stored: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise ModelError(f"{path} is cut short or not a safetensors file: {error}") from None
    return stored


def _normalize_names(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float32 under the names that save_model writes, without the masks of old files."""
    named: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        short = name.removeprefix(_PREFIX)
        if _MASKS.fullmatch(short):
            continue
        full = _PREFIX + short if _PREFIXED.match(short) else name
        if full in named:
            raise ModelError(f"its {WEIGHTS} has the tensor {short} twice, with and without {_PREFIX!r}")
        named[full] = tensor
    return _as_float32(named)


def _as_float32(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float32. Raises ModelError if one is not of _FLOATS or has a value that is not finite."""
    for name, tensor in stored.items():
        if tensor.dtype not in _FLOATS:
            raise ModelError(f"tensor {name} is {tensor.dtype}, not float32, float16 or bfloat16")
        num_bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if num_bad:
            raise ModelError(
                f"tensor {name} has {num_bad} of {tensor.numel()} values that are NaN or infinite, and so would every\n"
                "loss be; the training that made these weights failed: use weights from before that"
            )
    return {name: tensor.float() for name, tensor in stored.items()}


def _take_first_positions(stored: dict[str, Tensor], name: str, config: GPTConfig) -> None:
    """Drop the position embeddings beyond context_length, and say so."""
    positions = stored.get(name)
    if positions is not None and positions.ndim == 2 and len(positions) > config.context_length:
        stored[name] = positions[: config.context_length].clone()
        print_message(f"init_from: the first {config.context_length} of {len(positions)} positions are used")


def _add_omitted(stored: dict[str, Tensor], config: GPTConfig, *, is_tied: bool) -> None:
    """Add tensors that a GPT-2 file may omit: a tied head, zero biases. Refuse nonzero biases that would be dropped."""
    embeddings = stored[EMBEDDINGS]
    if is_tied and not torch.equal(stored.get(HEAD, embeddings), embeddings):
        raise ModelError(
            f"its {CONFIG} says tie_word_embeddings: true, but {HEAD} is not {EMBEDDINGS};\n"
            "set tie_word_embeddings to false there if the head is the one to use"
        )
    if config.tie_weights:
        _require_equal_head(stored, HEAD, EMBEDDINGS)
        stored.pop(HEAD, None)
    elif is_tied:
        stored[HEAD] = embeddings
        print_message(
            "init_from: the output head, tied there, starts as a copy of the token embeddings;\n"
            "tie_weights: true keeps it tied"
        )
    biases = [f"transformer.h.{layer}.attn.c_attn.bias" for layer in range(config.n_layers)]
    if not any(name in stored for name in biases):
        stored |= {name: torch.zeros(3 * config.emb_dim) for name in biases}
    nonzero = [name for name in biases if name in stored and bool(stored[name].any())]
    if nonzero and not config.qkv_bias:
        raise ModelError(f"qkv_bias: false in params.yaml, but {nonzero[0]} is not zero; set qkv_bias to true")


def _require_equal_head(stored: Mapping[str, Tensor], head: str, embeddings: str) -> None:
    """Raise ModelError if the stored head, if there is one, can't be tied to the embeddings."""
    if not torch.equal(stored.get(head, stored[embeddings]), stored[embeddings]):
        raise ModelError(f"tie_weights: true in params.yaml, but {head} is not {embeddings}; set tie_weights to false")
