"""Imports weights from any Hugging Face GPT-2 directory, or with the book's own names (`init_from`).

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
from reprogpt.model.book_names import POSITIONS as BOOK_POSITIONS
from reprogpt.model.book_names import UnfitTensorError, are_the_books, from_book
from reprogpt.model.gpt import GPTConfig, GPTModel
from reprogpt.model.gpt2_format import (
    CONFIG,
    SIZES,
    WEIGHTS,
    config_problems,
    from_gpt2,
    read_config,
    require_no_lfs_pointer,
    to_gpt2,
)
from reprogpt.paths import MODEL, repository_root

INDEX, PICKLE = f"{WEIGHTS}.index.json", "pytorch_model.bin"
PICKLE_INDEX = f"{PICKLE}.index.json"
HEAD, EMBEDDINGS, POSITIONS = "lm_head.weight", "transformer.wte.weight", "transformer.wpe.weight"
PICKLE_SUFFIXES = (".pth", ".pt")  # as the book saves with torch.save
_PREFIX = "transformer."  # written by GPT2LMHeadModel, not by GPT2Model or the first published files
_PREFIXED = re.compile(r"(wte|wpe|h|ln_f)\.")
# A name of GPT-2 after a prefix of a wrapper, such as DistributedDataParallel's `module.`
_WRAPPED = re.compile(r"(?P<prefix>.+?\.)(transformer\.(wte|wpe|h|ln_f)\.|(wte|wpe|ln_f)\.|h\.\d+\.|lm_head\.).*")
_MASKS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # causal masks, which old files hold as tensors
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class _UnusableError(Exception):
    """Why a folder can't be used, as the second half of a sentence."""


@dataclass(frozen=True)
class InitialWeights:
    """weights: by GPTModel's names, float32 on the CPU. sha256: of the file they were read from."""

    weights: dict[str, Tensor]
    sha256: str


def load_initial_weights(init_from: str, init_from_sha256: str, config: GPTConfig) -> InitialWeights:
    """Load the weights in the GPT-2 directory init_from for a GPTModel with this config.

    init_from: absolute, or relative to the main repository's root, also in a queued experiment's copy.
    init_from_sha256: of its model.safetensors; "" accepts any, with a warning.
    A tied output head stays tied with tie_weights, and otherwise becomes a copy of the token embeddings. Query, key
    and value biases that are not stored are zeros; nonzero ones need qkv_bias.
    Of more positions than context_length the first are taken. A model.safetensors without config.json may have the
    book's own names.
    Raises ParamsError if the folder is missing or not a GPT-2 directory, has other sizes or settings than this model,
    another digest, or weights that are not finite.
    """
    folder = repository_root() / init_from
    try:
        _require_folder(folder)
        if (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
            weights, sha256 = _read_gpt2(folder, init_from_sha256, config)
        else:
            weights, sha256 = _read_book(folder, init_from_sha256, config)
    except _UnusableError as fault:
        raise ParamsError(f"init_from={init_from} can't be used: {fault}") from None
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror or error}"
        raise ParamsError(f"init_from={init_from} can't be read: {reason}") from None
    if not init_from_sha256:
        print_message(
            f'warning: init_from_sha256 is "": any weights in {init_from} are accepted, and are read again when train\n'
            f"runs (`dvc repro -f train`); to pin these, set init_from_sha256 to\n{sha256}"
        )
    return InitialWeights(weights, sha256)


def _read_gpt2(folder: Path, wanted_sha256: str, config: GPTConfig) -> tuple[dict[str, Tensor], str]:
    """Weights by GPTModel's names, and the digest of their file, of a GPT-2 directory."""
    foreign = _read_config(folder)
    _require_same_model(foreign, config)
    content = _read_weights(folder)
    sha256 = hashlib.sha256(content).hexdigest()
    _require_digest(wanted_sha256, sha256)
    stored = _normalize_names(_parse(content))
    _require_finite(stored)
    _take_first_positions(stored, foreign[SIZES["context_length"]], config)
    _complete(stored, config, tied=bool(foreign.get("tie_word_embeddings", True)))
    _require_shapes(stored, config)
    return from_gpt2(stored, config), sha256


def _read_book(folder: Path, wanted_sha256: str, config: GPTConfig) -> tuple[dict[str, Tensor], str]:
    """The same of a folder without config.json, whose tensors have the book's own names."""
    content = _read_weights(folder)
    sha256 = hashlib.sha256(content).hexdigest()
    stored = _parse(content)
    if not are_the_books(stored):
        raise _UnusableError(f"{folder} has no {CONFIG}, so it is not a GPT-2 directory")
    _require_digest(wanted_sha256, sha256)
    try:
        weights = from_book(stored, config)
    except UnfitTensorError as problem:
        raise _UnusableError(f"its {WEIGHTS}, which has the book's names, {problem}") from None
    _require_finite(weights)
    _say_positions(len(stored[BOOK_POSITIONS]), config)
    print_message(f"init_from: without {CONFIG}, nothing tells n_heads; {config.n_heads} is params.yaml's")
    return weights, sha256


def _take_first_positions(stored: dict[str, Tensor], num_positions: int, config: GPTConfig) -> None:
    """Cut the rows of positions beyond context_length, if there are as many as config.json says."""
    positions = stored.get(POSITIONS)
    if positions is not None and positions.ndim == 2 and len(positions) == num_positions:
        stored[POSITIONS] = positions[: config.context_length].clone()
        _say_positions(len(positions), config)


def _say_positions(num_stored: int, config: GPTConfig) -> None:
    if num_stored > config.context_length:
        print_message(f"init_from: the first {config.context_length} of {num_stored} positions are taken")


def _require_folder(folder: Path) -> None:
    """Raise with what to do where init_from names no folder, or one that has a pickle and no model.safetensors."""
    if folder.is_file():
        if folder.suffix in PICKLE_SUFFIXES:
            raise _UnusableError(_pickle_advice(folder))
        raise _UnusableError(f"{folder} is a file; name the folder that has it as {WEIGHTS}")
    if not folder.is_dir() or (folder / WEIGHTS).exists() or (folder / CONFIG).exists():
        return
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise _UnusableError(_pickle_advice(pickles[0]))


def _pickle_advice(path: Path) -> str:
    return (
        f"{path} is a pickle, which can run code when it is loaded; it is never read here. If you\n"
        "trust it, convert it in Python, into a folder of its own, and name that folder:\n"
        "  import torch, safetensors.torch\n"
        f"  weights = torch.load({path.name!r}, map_location='cpu', weights_only=True)\n"
        "  weights = weights.get('model_state_dict', weights)  # saved with the optimizer\n"
        "  weights = {name: tensor.clone().contiguous() for name, tensor in weights.items()}\n"
        f"  safetensors.torch.save_file(weights, 'FOLDER/{WEIGHTS}')"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        own = f"DVC removes {MODEL}, which train writes, before it runs: copy it elsewhere and name the copy"
        other = "a path that is not absolute starts at the main repository's root, also in a queued experiment"
        raise _UnusableError(f"there is no folder {folder};\n{own if folder == repository_root() / MODEL else other}")
    path = folder / CONFIG
    if not path.is_file():
        raise _UnusableError(f"{folder} has no {CONFIG}, so it is not a GPT-2 directory")
    try:
        return read_config(path)
    except ModelError as error:
        raise _UnusableError(str(error)) from None


def _require_same_model(foreign: Mapping[str, Any], config: GPTConfig) -> None:
    """Raise with every difference between the stored configuration and this model's."""
    other_sizes = [
        f"{ours}: {getattr(config, ours)} in params.yaml, but {theirs} is {foreign.get(theirs, 'missing')}"
        for ours, theirs in SIZES.items()
        if foreign.get(theirs) != getattr(config, ours) and not _has_more_positions(foreign, config, theirs)
    ]
    other_model = config_problems(foreign)
    if not (other_sizes or other_model):
        return
    listing = "\n".join(f"  {problem}" for problem in other_model + other_sizes)
    advice = []
    if other_model:
        advice.append("No key of params.yaml changes what this model can only have: start from another model's weights")
    if other_sizes:
        advice.append("Set the keys of params.yaml that are named to its values")
    raise _UnusableError(f"its {CONFIG} describes another model\n{listing}\n" + "\n".join(advice))


def _has_more_positions(foreign: Mapping[str, Any], config: GPTConfig, key: str) -> bool:
    """Whether this key is the number of positions, of which the first context_length are there to be taken."""
    stored = foreign.get(key)
    return key == SIZES["context_length"] and type(stored) is int and stored > config.context_length


def _read_weights(folder: Path) -> bytes:
    """The whole file, read once, so that the digest is that of the weights that are used."""
    path = folder / WEIGHTS
    if path.is_file():
        content = path.read_bytes()
        try:
            require_no_lfs_pointer(content, path)
        except ModelError as error:
            raise _UnusableError(str(error)) from None
        return content
    if (folder / INDEX).is_file():
        raise _UnusableError(
            f"its weights are sharded ({INDEX}); join them in Python:\n"
            '  GPT2LMHeadModel.from_pretrained(folder).save_pretrained(other, max_shard_size="100GB")'
        )
    pickles = {PICKLE: f"{PICKLE} is a pickle", PICKLE_INDEX: f"{PICKLE_INDEX} names pickles"}
    for name, what in pickles.items():
        if (folder / name).is_file():
            raise _UnusableError(
                f"{what}, which can run code when it is loaded, and there is no {WEIGHTS};\n"
                "if you trust it, write one in Python:  "
                'GPT2LMHeadModel.from_pretrained(folder).save_pretrained(other, max_shard_size="100GB")'
            )
    raise _UnusableError(f"{folder} has no {WEIGHTS}")


def _require_digest(wanted: str, found: str) -> None:
    if wanted not in ("", found):
        raise _UnusableError(
            f"its {WEIGHTS} is another file than expected\n"
            f"  expected  init_from_sha256={wanted}\n"
            f"  found     {found}\n"
            "If these weights are wanted, set init_from_sha256 to the second; if not, correct init_from"
        )


def _parse(content: bytes) -> dict[str, Tensor]:
    try:
        stored: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise _UnusableError(f"its {WEIGHTS} is cut short or not a safetensors file: {error}") from None
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
            raise _UnusableError(f"its {WEIGHTS} has the tensor {short} twice, with and without {_PREFIX!r}")
        if tensor.dtype not in _FLOATS:
            raise _UnusableError(f"tensor {full} is {tensor.dtype}, not float32, float16 or bfloat16")
        named[full] = tensor.float()
    return named


def _complete(stored: dict[str, Tensor], config: GPTConfig, *, tied: bool) -> None:
    """Add tensors that a GPT-2 file may omit: a tied head, zero biases. Refuse nonzero biases that would be dropped."""
    embeddings = stored.get(EMBEDDINGS)
    if tied and embeddings is not None:
        if not torch.equal(stored.get(HEAD, embeddings), embeddings):
            raise _UnusableError(
                f"its {CONFIG} says tie_word_embeddings: true, but {HEAD} is not {EMBEDDINGS};\n"
                "set tie_word_embeddings to false there if the head is the one to use"
            )
        if not config.tie_weights:
            stored[HEAD] = embeddings
            print_message(
                "init_from: the output head, tied there, starts as a copy of the token embeddings;\n"
                "tie_weights: true keeps it tied"
            )
    head = stored.pop(HEAD, embeddings) if config.tie_weights else None
    if head is not None and embeddings is not None and not torch.equal(head, embeddings):
        raise _UnusableError(
            f"tie_weights: true in params.yaml, but {HEAD} is not {EMBEDDINGS} there; set tie_weights to false"
        )
    biases = [f"transformer.h.{layer}.attn.c_attn.bias" for layer in range(config.n_layers)]
    if not any(name in stored for name in biases):
        stored |= {name: torch.zeros(3 * config.emb_dim) for name in biases}
    dropped = [name for name in biases if not config.qkv_bias and name in stored and bool(stored[name].any())]
    if dropped:
        raise _UnusableError(f"qkv_bias: false in params.yaml, but {dropped[0]} is not zero; set qkv_bias to true")


def _require_shapes(stored: Mapping[str, Tensor], config: GPTConfig) -> None:
    with torch.device("meta"):  # shapes only
        wanted = to_gpt2(GPTModel(config).state_dict(), config)
    for name in sorted(wanted.keys() ^ stored.keys()):
        fault = "lacks tensor" if name in wanted else "has an unknown tensor"
        raise _UnusableError(f"its {WEIGHTS} {fault} {name}{_prefix_advice(stored)}")
    for name, tensor in wanted.items():
        found = stored[name]
        if found.shape != tensor.shape:
            raise _UnusableError(
                f"tensor {name} is {list(found.shape)}, but {CONFIG} and params.yaml ask for {list(tensor.shape)}"
            )


def _prefix_advice(stored: Mapping[str, Tensor]) -> str:
    """What to do about names that a wrapper has put a prefix before, "" if there are none."""
    prefixes = {
        match["prefix"] for name in stored if (match := _WRAPPED.fullmatch(name)) and not name.startswith(_PREFIX)
    }
    if len(prefixes) != 1:
        return ""
    (prefix,) = prefixes
    return (
        f";\nits names begin with {prefix!r}, as of a model inside another (DistributedDataParallel, torch.compile):\n"
        f"save the inner one, or rename the tensors in Python:\n"
        f'  save_file({{name.removeprefix("{prefix}"): t for name, t in load_file(path).items()}}, path)'
    )


def _require_finite(stored: Mapping[str, Tensor]) -> None:
    for name, tensor in stored.items():
        num_bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if num_bad:
            raise _UnusableError(
                f"tensor {name} has {num_bad} of {tensor.numel()} values that are NaN or infinite, and so would every\n"
                "loss be; the training that made these weights failed: take weights from before that"
            )
