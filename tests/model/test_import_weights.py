"""Importing GPT-2 directories that `transformers` wrote, and which are refused."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.baseline import MODEL_KEYS, PlainGPT
from reprogpt.errors import ParamsError
from reprogpt.model.gpt import GPTConfig, GPTModel
from reprogpt.model.gpt2_format import save_model
from reprogpt.model.import_weights import load_initial_weights
from tests.tiny import CONFIG, tiny_model, weights_of

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 63]])
BIASED = replace(CONFIG, qkv_bias=True)
SIZES: dict[str, Any] = {"vocab_size": 64, "n_positions": 8, "n_embd": 32, "n_head": 4, "n_layer": 2}


def gpt2_model(*, qkv_bias: bool = True, tied: bool = False, **changes: Any) -> GPT2LMHeadModel:
    """A model of transformers with all entries at random, or with query, key and value biases of zeros."""
    torch.manual_seed(5)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**SIZES | ends | changes, tie_word_embeddings=tied))
    for name, parameter in model.named_parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
        if name.endswith("c_attn.bias") and not qkv_bias:
            parameter.data.zero_()
    model.train(False)
    return model


def saved(folder: Path, **changes: Any) -> Path:
    """The folder after gpt2_model(**changes) was saved into it."""
    gpt2_model(**changes).save_pretrained(folder)
    return folder


def imported(folder: Path, config: GPTConfig = BIASED, sha256: str = "") -> GPTModel:
    """A model of this config with the folder's weights, in eval mode."""
    model = GPTModel(config)
    weights = load_initial_weights(str(folder), sha256, config).weights
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    model.load_state_dict(weights)
    return model.eval()


def import_error(folder: Path | str, config: GPTConfig = BIASED, sha256: str = "") -> str:
    with pytest.raises(ParamsError) as error:
        load_initial_weights(str(folder), sha256, config)
    assert str(error.value).startswith(f"init_from={folder} can't be ")
    return str(error.value)


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | values), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def assert_maps_exactly(ours: GPTModel, theirs: GPT2LMHeadModel) -> None:
    """Every tensor of ours is one of theirs, to the bit, written out here once more."""
    stored: dict[str, Tensor] = {name: tensor.float() for name, tensor in theirs.state_dict().items()}
    expected = {"tok_emb.weight": stored["transformer.wte.weight"], "pos_emb.weight": stored["transformer.wpe.weight"]}
    pairs = {"att.out_proj": "attn.c_proj", "ff.layers.0": "mlp.c_fc", "ff.layers.2": "mlp.c_proj"}
    for layer in range(2):
        block, other = f"trf_blocks.{layer}", f"transformer.h.{layer}"
        for index, name in enumerate(("query", "key", "value")):
            part = slice(32 * index, 32 * (index + 1))
            expected[f"{block}.att.W_{name}.weight"] = stored[f"{other}.attn.c_attn.weight"][:, part].T
            if ours.config.qkv_bias:
                expected[f"{block}.att.W_{name}.bias"] = stored[f"{other}.attn.c_attn.bias"][part]
        for name, gpt2 in pairs.items():
            expected[f"{block}.{name}.weight"] = stored[f"{other}.{gpt2}.weight"].T
            expected[f"{block}.{name}.bias"] = stored[f"{other}.{gpt2}.bias"]
        for kind in ("weight", "bias"):
            for number in (1, 2):
                expected[f"{block}.norm{number}.{kind}"] = stored[f"{other}.ln_{number}.{kind}"]
    for kind in ("weight", "bias"):
        expected[f"final_norm.{kind}"] = stored[f"transformer.ln_f.{kind}"]
    expected["out_head.weight"] = stored["lm_head.weight"]
    found = ours.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes(), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_an_imported_model_has_the_weights_and_logits_of_transformers(
    tmp_path: Path, tied: bool, qkv_bias: bool
) -> None:
    theirs = gpt2_model(tied=tied, qkv_bias=qkv_bias)
    theirs.save_pretrained(tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    ours = imported(tmp_path, replace(CONFIG, qkv_bias=qkv_bias))
    assert_maps_exactly(ours, theirs)
    with torch.no_grad():
        assert torch.allclose(ours(IDS), theirs(IDS).logits, rtol=0, atol=1e-5)


def test_a_tied_output_head_becomes_a_copy_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = imported(saved(tmp_path, tied=True))
    assert "the output head, tied there, starts as a copy of the token embeddings" in capsys.readouterr().err
    assert torch.equal(model.out_head.weight, model.tok_emb.weight)
    assert model.out_head.weight.data_ptr() != model.tok_emb.weight.data_ptr()
    imported(saved(tmp_path, tied=False))
    assert "the output head" not in capsys.readouterr().err


def test_with_tie_weights_a_tied_head_stays_tied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = gpt2_model(tied=True)
    theirs.save_pretrained(tmp_path)
    ours = imported(tmp_path, replace(BIASED, tie_weights=True))
    assert "the output head" not in capsys.readouterr().err
    assert ours.out_head.weight is ours.tok_emb.weight
    assert_maps_exactly(ours, theirs)
    with torch.no_grad():
        assert torch.allclose(ours(IDS), theirs(IDS).logits, rtol=0, atol=1e-5)
    save_model(tmp_path / "again", ours)
    assert json.loads((tmp_path / "again/config.json").read_bytes())["tie_word_embeddings"] is True


def test_with_tie_weights_a_head_of_its_own_is_refused(tmp_path: Path) -> None:
    message = import_error(saved(tmp_path, tied=False), replace(BIASED, tie_weights=True))
    assert "tie_weights: true in params.yaml, but lm_head.weight is not transformer.wte.weight" in message


def test_names_without_prefix_and_the_masks_of_old_files_are_read(tmp_path: Path) -> None:
    theirs = gpt2_model(tied=True)
    theirs.transformer.save_pretrained(tmp_path)  # GPT2Model: h.0.…, no head
    masks = {"attn.bias": torch.ones(1, 1, 8, 8), "attn.masked_bias": torch.tensor(-1e4)}
    change_weights(
        tmp_path, lambda weights: weights.update({f"h.{i}.{key}": masks[key].clone() for i in (0, 1) for key in masks})
    )
    assert "wte.weight" in load_file(tmp_path / "model.safetensors")
    assert_maps_exactly(imported(tmp_path), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = gpt2_model()
    torch.nn.Module.to(theirs, dtype)
    theirs.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["lm_head.weight"].dtype == dtype
    assert_maps_exactly(imported(tmp_path), theirs)


@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_our_own_directory_is_imported_bit_for_bit(tmp_path: Path, theirs: bool, ours: bool) -> None:
    model = tiny_model(qkv_bias=theirs)
    if theirs:
        for block in model.trf_blocks:
            for name in ("W_query", "W_key", "W_value"):
                getattr(block.att, name).bias.data.zero_()
    save_model(tmp_path, model)
    loaded = imported(tmp_path, replace(CONFIG, qkv_bias=ours))
    biases = {name for name in loaded.state_dict() if re.search(r"W_\w+\.bias", name)}
    assert len(biases) == (6 if ours else 0)
    assert not any(loaded.state_dict()[name].any() for name in biases)
    others = [name for name in loaded.state_dict() if name not in biases]
    assert all(torch.equal(loaded.state_dict()[name], model.state_dict()[name]) for name in others)


def test_query_key_and_value_biases_that_are_not_stored_are_zeros(tmp_path: Path) -> None:
    def drop(weights: dict[str, Tensor]) -> None:
        for layer in range(2):
            del weights[f"transformer.h.{layer}.attn.c_attn.bias"]

    change_weights(saved(tmp_path, qkv_bias=False), drop)
    assert_maps_exactly(imported(tmp_path), gpt2_model(qkv_bias=False))


def test_nonzero_biases_that_would_be_dropped_are_refused(tmp_path: Path) -> None:
    message = import_error(saved(tmp_path), CONFIG)
    assert "qkv_bias: false in params.yaml, but transformer.h.0.attn.c_attn.bias is not zero" in message


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"vocab_size": 63}, "vocab_size: 63 in params.yaml, but vocab_size is 64"),
        ({"context_length": 16}, "context_length: 16 in params.yaml, but n_positions is 8"),
        ({"emb_dim": 64}, "emb_dim: 64 in params.yaml, but n_embd is 32"),
        ({"n_heads": 8}, "n_heads: 8 in params.yaml, but n_head is 4"),
        ({"n_layers": 3}, "n_layers: 3 in params.yaml, but n_layer is 2"),
    ],
)
def test_another_size_is_refused_naming_both_values(tmp_path: Path, ours: dict[str, int], theirs: str) -> None:
    saved(tmp_path)
    assert f"  {theirs}\n" in import_error(tmp_path, replace(BIASED, **ours))  # type: ignore[arg-type]


def test_all_sizes_that_differ_are_named_at_once(tmp_path: Path) -> None:
    message = import_error(saved(tmp_path), replace(BIASED, n_layers=3, context_length=9))
    assert "n_layers: 3" in message and "context_length: 9" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu', but this model can only have 'gelu_new'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06, but this model can only have 1e-05"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False, but this model can only have True"),
        (
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx is True, but this model can only have False",
        ),
        ({"activation_function": "gelu"}, "activation_function is 'gelu', but this model can only have 'gelu_new'"),
        ({"n_inner": 64}, "n_inner is 64, but this model can only have 4 * n_embd or null"),
    ],
)
def test_what_this_model_cannot_represent_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    found = import_error(saved(tmp_path, **changes))
    assert message in found
    assert found.endswith(
        "No key of params.yaml changes what this model can only have: start from another model's weights"
    )


def test_sizes_are_set_in_params_yaml_and_no_other_fault_is(tmp_path: Path) -> None:
    saved(tmp_path, activation_function="gelu")
    message = import_error(tmp_path, replace(BIASED, n_layers=3))
    assert "No key of params.yaml changes" in message
    assert message.endswith("Set the keys of params.yaml that are named to its values")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 548105171\n"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    (saved(tmp_path) / name).write_bytes(POINTER)
    message = import_error(tmp_path)
    assert f"{tmp_path / name} is a Git LFS pointer of 78 bytes, not the file" in message
    assert "git lfs pull" in message


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["lm_head.weight", "transformer.wte.weight", "transformer.h.1.ln_2.bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, name: str, dtype: torch.dtype) -> None:
    def spoil(weights: dict[str, Tensor]) -> None:
        weights[name] = weights[name].to(dtype)
        weights[name].view(-1)[3] = value

    change_weights(saved(tmp_path), spoil)
    assert f"tensor {name} has 1 of " in import_error(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("inner", ["transformer.", ""])
def test_a_wrappers_prefix_is_shown(tmp_path: Path, prefix: str, inner: str) -> None:
    theirs = load_file(saved(tmp_path) / "model.safetensors")
    renamed = {prefix + name.replace("transformer.", inner): tensor for name, tensor in theirs.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    message = import_error(tmp_path)
    assert f"lacks tensor transformer.wte.weight; its names are like {prefix}" in message
    assert "save the model inside the wrapper" in message


def test_the_digest_to_pin_is_advised_for_usable_weights_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_weights(saved(tmp_path), lambda weights: weights.pop("transformer.h.1.ln_2.bias"))
    import_error(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    import_error(tmp_path)
    assert "init_from_sha256" not in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"activation_function": "gelu_pytorch_tanh"}, {"n_inner": 128}])
def test_another_name_for_the_same_function_is_accepted(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = gpt2_model(**changes)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(imported(tmp_path)(IDS), theirs(IDS).logits, rtol=0, atol=1e-5)


def test_a_missing_folder_is_named_with_where_it_was_looked_for(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"there is no folder {tmp_path / 'weights'}; a relative path starts at" in import_error("weights")
    assert "DVC removes data/model, which train writes, before it runs: copy it elsewhere" in import_error("data/model")


def test_a_relative_folder_is_the_main_repositorys_in_a_copy_too(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "copy").mkdir()
    saved(tmp_path / "weights")
    monkeypatch.chdir(tmp_path / "copy")
    assert f"no folder {tmp_path / 'copy/weights'}" in import_error("weights")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert weights_of(imported(Path("weights"))) == weights_of(imported(tmp_path / "weights"))


def test_another_model_or_none_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path} has no model.safetensors" in import_error(tmp_path)
    saved(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    assert "has no config.json, so it is not a GPT-2 directory" in import_error(tmp_path)
    (tmp_path / "other.json").rename(tmp_path / "config.json")
    change_config(tmp_path, model_type="llama")
    assert "has model_type llama, not gpt2" in import_error(tmp_path)
    for content in ("{", "[]", "\x00"):
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
        assert "config.json" in import_error(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    assert "n_layers: 2 in params.yaml, but n_layer is missing" in import_error(tmp_path)


def test_another_digest_is_refused_and_none_is_accepted_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = hashlib.sha256((saved(tmp_path) / "model.safetensors").read_bytes()).hexdigest()
    message = import_error(tmp_path, sha256="0" * 64)
    assert f"expected  init_from_sha256={'0' * 64}\n  got       {digest}\n" in message
    capsys.readouterr()
    assert load_initial_weights(str(tmp_path), digest, BIASED).sha256 == digest
    assert "warning" not in capsys.readouterr().err
    assert load_initial_weights(str(tmp_path), "", BIASED).sha256 == digest
    assert f"to pin these, set init_from_sha256 to\n{digest}" in capsys.readouterr().err


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    message = import_error(tmp_path)
    assert "pytorch_model.bin is a pickle, which can run code when it is loaded" in message
    assert "safetensors.torch.save_file" in message
    (tmp_path / "optimizer.pt").touch()
    assert "pytorch_model.bin is a pickle" in import_error(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "pytorch_model.bin.index.json")
    message = import_error(tmp_path)
    assert "its weights are in several files (pytorch_model.bin.index.json)" in message
    assert "GPT2LMHeadModel.from_pretrained(folder).save_pretrained(other, " in message


def test_sharded_weights_are_refused_with_a_way_to_join_them(tmp_path: Path) -> None:
    theirs = gpt2_model()
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    assert "its weights are in several files (model.safetensors.index.json)" in import_error(tmp_path / "parts")
    GPT2LMHeadModel.from_pretrained(tmp_path / "parts").save_pretrained(tmp_path / "one", max_shard_size="100GB")
    assert_maps_exactly(imported(tmp_path / "one"), theirs)


def test_a_file_that_is_no_pickle_is_answered_with_where_it_belongs(tmp_path: Path) -> None:
    file = saved(tmp_path) / "model.safetensors"
    assert f"{file} is a file; name the folder that has it as model.safetensors" in import_error(file)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (saved(tmp_path) / "model.safetensors").unlink()
    assert f"{tmp_path} has no model.safetensors" in import_error(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_file_is_refused(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "model.safetensors is cut short or not a safetensors file" in import_error(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    saved(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert import_error(tmp_path).endswith(f"can't be read: {tmp_path / 'model.safetensors'}: Permission denied")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("transformer.h.1.ln_2.bias"), "lacks tensor transformer.h.1.ln_2.bias"),
        (
            lambda weights: weights.pop("transformer.h.1.attn.c_attn.bias"),
            "lacks tensor transformer.h.1.attn.c_attn.bias",
        ),
        (lambda weights: weights.pop("transformer.wte.weight"), "lacks tensor transformer.wte.weight"),
        (lambda weights: weights.pop("lm_head.weight"), "lacks tensor lm_head.weight"),
        (lambda weights: weights.update({"score.weight": torch.zeros(2)}), "has an unknown tensor score.weight"),
        (
            lambda weights: weights.update({"transformer.wpe.weight": torch.zeros(9, 32)}),
            "tensor transformer.wpe.weight is torch.float32 [9, 32], but the configuration asks for float32 [8, 32]",
        ),
        (
            lambda weights: weights.update({"transformer.ln_f.bias": torch.zeros(32).double()}),
            "tensor transformer.ln_f.bias is torch.float64, not float32, float16 or bfloat16",
        ),
        (
            lambda weights: weights.update({"ln_f.bias": torch.zeros(32)}),
            "has the tensor ln_f.bias twice, with and without 'transformer.'",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: Callable[..., Any], message: str) -> None:
    change_weights(saved(tmp_path), change)
    assert message in import_error(tmp_path)


def test_a_tied_head_of_its_own_is_refused(tmp_path: Path) -> None:
    change_config(saved(tmp_path), tie_word_embeddings=True)
    assert "tie_word_embeddings: true, but lm_head.weight is not transformer.wte.weight" in import_error(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_of_more_positions_than_context_length_the_first_are_used(
    tmp_path: Path, tied: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = gpt2_model(tied=tied)
    theirs.save_pretrained(tmp_path)
    ours = imported(tmp_path, replace(BIASED, context_length=5))
    assert "init_from: the first 5 of 8 positions are used" in capsys.readouterr().err
    assert torch.equal(ours.pos_emb.weight, theirs.get_parameter("transformer.wpe.weight")[:5])
    with torch.no_grad():
        assert torch.allclose(ours(IDS[:, :5]), theirs(IDS[:, :5]).logits, rtol=0, atol=1e-5)


def test_more_positions_than_are_stored_are_refused(tmp_path: Path) -> None:
    message = import_error(saved(tmp_path), replace(BIASED, context_length=9))
    assert "context_length: 9 in params.yaml, but n_positions is 8" in message


def books_weights(**changes: Any) -> dict[str, Tensor]:
    """What `torch.save(model.state_dict())` of the book's program holds: its LayerNorm and its mask."""
    torch.manual_seed(3)
    sizes = {key: getattr(CONFIG, key) for key in MODEL_KEYS} | changes
    return {name: tensor.clone() for name, tensor in PlainGPT(**sizes).state_dict().items()}


def book_folder(folder: Path, weights: dict[str, Tensor]) -> Path:
    masks = {f"trf_blocks.{layer}.att.mask": torch.triu(torch.ones(8, 8), 1) for layer in (0, 1)}
    renamed = {
        name.replace("norm1.weight", "norm1.scale").replace("norm1.bias", "norm1.shift"): tensor
        for name, tensor in weights.items()
    }
    save_file(masks | renamed, folder / "model.safetensors")
    return folder


def test_weights_under_the_books_names_are_read_without_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = books_weights()
    model = imported(book_folder(tmp_path, weights), CONFIG)
    plain = PlainGPT(**{key: getattr(CONFIG, key) for key in MODEL_KEYS})
    plain.load_state_dict(weights)
    with torch.no_grad():
        assert torch.allclose(model(IDS), plain.eval()(IDS), rtol=0, atol=1e-5)
    assert "nothing tells n_heads; 4 is params.yaml's" in capsys.readouterr().err
    short = imported(tmp_path, replace(CONFIG, context_length=5))
    assert torch.equal(short.pos_emb.weight, weights["pos_emb.weight"][:5])
    assert "the first 5 of 8 positions are used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BIASED, "lacks trf_blocks.0.att.W_query.bias; set qkv_bias to false"),
        (replace(CONFIG, n_layers=1), "has an unknown tensor trf_blocks.1."),
        (
            replace(CONFIG, vocab_size=65),
            "tensor tok_emb.weight is torch.float32 [64, 32], but",
        ),
        (
            replace(CONFIG, tie_weights=True),
            "out_head.weight is not tok_emb.weight; set tie_weights to false",
        ),
    ],
)
def test_weights_of_the_book_that_do_not_fit_are_refused(tmp_path: Path, config: GPTConfig, message: str) -> None:
    assert message in import_error(book_folder(tmp_path, books_weights()), config)


def test_weights_of_the_book_with_biases_need_qkv_bias(tmp_path: Path) -> None:
    folder = book_folder(tmp_path, books_weights(qkv_bias=True))
    assert "has trf_blocks.0.att.W_query.bias; set qkv_bias to true" in import_error(folder, CONFIG)
    assert imported(folder, BIASED).config == BIASED


@pytest.mark.parametrize("names_the_file", [False, True])
def test_a_pickle_is_answered_with_its_conversion_and_never_read(tmp_path: Path, names_the_file: bool) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Trap()}, tmp_path / "model.pth")
    message = import_error(tmp_path / "model.pth" if names_the_file else tmp_path, CONFIG)
    assert "model.pth is a pickle" in message and "safetensors.torch.save_file" in message
    assert not (tmp_path / "ran").exists()


def test_the_conversion_that_the_message_shows_gives_weights_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state_dict": books_weights(), "optimizer_state_dict": {}}, "model.pth")
    lines = import_error(tmp_path, CONFIG).splitlines()
    code = "\n".join(line.strip() for line in lines if line.startswith("  ")).replace("FOLDER", "folder")
    (tmp_path / "folder").mkdir()
    exec(code)
    assert torch.equal(imported(tmp_path / "folder", CONFIG).out_head.weight, books_weights()["out_head.weight"])
