"""The model on disk, as a Hugging Face GPT-2 directory."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprogpt.data.tokens import load_encoding, write_tokenizer
from reprogpt.errors import ModelError
from reprogpt.model.gpt import GPTModel
from reprogpt.model.gpt2_format import best_step, load_model, save_model
from tests.tiny import tiny_model, weights_of

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A GPT-2 directory of the tiny model."""
    save_model(tmp_path / "model", tiny_model())
    return tmp_path / "model"


def perturbed(model: GPTModel) -> GPTModel:
    """The model with all norms and biases away from their plain initial values."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_weights_are_loaded_bit_for_bit(tmp_path: Path, qkv_bias: bool) -> None:
    model = perturbed(tiny_model(qkv_bias=qkv_bias))
    save_model(tmp_path, model)
    again = load_model(tmp_path)
    assert again.config == model.config
    assert list(again.state_dict()) == list(model.state_dict())
    assert weights_of(again) == weights_of(model)
    assert not again.training and all(parameter.requires_grad for parameter in again.parameters())


def test_a_tied_head_is_stored_once_said_in_config_json_and_tied_again(tmp_path: Path) -> None:
    model = perturbed(tiny_model(tie_weights=True))
    save_model(tmp_path, model)
    assert json.loads((tmp_path / "config.json").read_bytes())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = load_model(tmp_path)
    assert again.config == model.config and weights_of(again) == weights_of(model)
    assert again.out_head.weight is again.tok_emb.weight


def test_the_step_of_the_best_evaluation_is_in_config_json_and_that_of_the_last_is_not(tmp_path: Path) -> None:
    save_model(tmp_path / "best", tiny_model(), best_step=50)
    save_model(tmp_path / "last", tiny_model())
    assert (best_step(tmp_path / "best"), best_step(tmp_path / "last")) == (50, None)
    assert weights_of(load_model(tmp_path / "best")) == weights_of(load_model(tmp_path / "last"))
    assert "best_step" not in json.loads((tmp_path / "last/config.json").read_bytes())


def test_saving_leaves_the_model_unchanged(tmp_path: Path) -> None:
    model = tiny_model()
    before = weights_of(model)
    save_model(tmp_path, model)
    assert weights_of(model) == before and model.training


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(tmp_path / "a", model)
    save_model(tmp_path / "b", load_model(tmp_path / "a"))
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_folder_holds_readable_files_and_none_is_a_pickle(folder: Path) -> None:
    write_tokenizer(folder, 8)
    names = {path.name for path in folder.iterdir()}
    configs = {"config.json", "gpt_config.json", "generation_config.json", "tokenizer_config.json"}
    assert names == configs | {"model.safetensors", "vocab.json", "merges.txt"}
    for path in folder.iterdir():
        assert path.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644  # safetensors alone would say 0o600


def test_config_json_has_the_models_hyperparameters(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    assert config["tie_word_embeddings"] is False
    assert (config["n_embd"], config["n_head"], config["n_layer"], config["n_positions"]) == (32, 4, 2, 8)
    assert config["n_ctx"] == 8
    assert [config[f"{kind}_pdrop"] for kind in ("attn", "embd", "resid")] == [0.1, 0.1, 0.1]


@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_transformers_computes_the_same_logits(tmp_path: Path, qkv_bias: bool, tie_weights: bool) -> None:
    from transformers import GPT2LMHeadModel

    model = perturbed(tiny_model(qkv_bias=qkv_bias)).eval()
    save_model(tmp_path, model)
    loaded: Any = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    theirs, report = loaded
    assert not any(report.values())
    assert torch.allclose(theirs(IDS).logits, model(IDS), rtol=0, atol=1e-4)


def test_transformers_tokenizes_as_tiktoken_does(folder: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(folder, 8)
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_encoding("gpt2")
    for text in ("Every effort moves you", " two  spaces\n\n“naïve” 漢字 🙂 don't 12345"):
        assert theirs(text)["input_ids"] == ours.encode_ordinary(text)
        assert theirs.decode(ours.encode_ordinary(text)) == text


def load_error(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_model(folder)
    assert "dvc checkout" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("n_head", 8, "n_head is 8, but the weights were trained with 4"),
        ("resid_pdrop", 0.2, "resid_pdrop is 0.2, but the weights were trained with 0.1"),
    ],
)
def test_a_config_that_the_weights_were_not_trained_with_is_refused(
    folder: Path, key: str, value: float, shown: str
) -> None:
    """Although each tensor has the right shape."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {key: value}))
    assert f"{path}: {shown}" in load_error(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{folder / name} is missing" in load_error(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_file_is_refused(folder: Path, name: str, share: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    assert name in load_error(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_another_format_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert name in load_error(folder)


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"'])
def test_a_config_that_is_not_a_mapping_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8")
    assert "config.json" in load_error(folder)


KEYS = ["vocab_size", "n_positions", "n_embd", "n_head", "n_layer", "resid_pdrop", "qkv_bias"]


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_config_key_is_named(folder: Path, key: str) -> None:
    change_config(folder, lambda config: config.pop(key))
    assert f"has no '{key}'" in load_error(folder)


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    change(config)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_an_unknown_tensor_is_named(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({"lm_head.bias": torch.zeros(64)}))
    assert "has an unknown tensor lm_head.bias" in load_error(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.pop("transformer.h.1.ln_2.bias"))
    assert "lacks tensor transformer.h.1.ln_2.bias" in load_error(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({"transformer.wpe.weight": torch.zeros(9, 32)}))
    message = load_error(folder)
    assert "transformer.wpe.weight is torch.float32 [9, 32], but the configuration asks for float32 [8, 32]" in message


def test_a_tensor_of_another_dtype_is_named(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({"transformer.ln_f.bias": torch.zeros(32).half()}))
    message = load_error(folder)
    assert "transformer.ln_f.bias is torch.float16 [32], but the configuration asks for float32 [32]" in message


def test_a_config_of_another_size_does_not_fit_the_weights(folder: Path) -> None:
    change_config(folder, lambda config: config.update(n_layer=3))
    assert "lacks tensor transformer.h.2." in load_error(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "llama", "model_type llama, not gpt2"),
        ("activation_function", "gelu", "activation_function is 'gelu', but this model can only have 'gelu_new' or"),
        ("activation_function", ["gelu_new"], "activation_function is ['gelu_new'], but this"),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon is 1e-06, but this model can only have 1e-05"),
        ("layer_norm_epsilon", "1e-05", "layer_norm_epsilon is '1e-05', but"),
        ("scale_attn_weights", False, "scale_attn_weights is False, but this model can only have True"),
        ("scale_attn_weights", 1, "scale_attn_weights is 1, but this model can only have True"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx is True, but"),
        ("add_cross_attention", True, "add_cross_attention is True, but"),
        ("n_inner", 64, "n_inner is 64, but this model can only have 4 * n_embd"),
        ("tie_word_embeddings", True, "has an unknown tensor lm_head.weight"),
        ("tie_word_embeddings", "no", "tie_word_embeddings is 'no', not true or false"),
        ("n_head", 5, "n_head is 5, which does not divide n_embd = 32"),
        ("resid_pdrop", "0.1", "resid_pdrop is '0.1', not a number"),
        ("resid_pdrop", 1, "resid_pdrop is 1, not a number of at least 0 and below 1"),
        ("resid_pdrop", True, "resid_pdrop is True, not a number"),
        ("qkv_bias", 0, "qkv_bias is 0, not true or false"),
        ("qkv_bias", None, "qkv_bias is None, not true or false"),
    ],
)
def test_a_config_of_another_model_is_refused(folder: Path, key: str, value: Any, message: str) -> None:
    change_config(folder, lambda config: config.update({key: value}))
    assert message in load_error(folder)


@pytest.mark.parametrize("key", ["vocab_size", "n_positions", "n_embd", "n_head", "n_layer"])
@pytest.mark.parametrize("value", ["4", 4.0, 2.5, True, None, 0, -4, [4], {}, "x" * 1000])
def test_a_size_that_is_not_a_whole_number_is_refused(folder: Path, key: str, value: Any) -> None:
    change_config(folder, lambda config: config.update({key: value}))
    message = load_error(folder)
    assert f"{key} is {value!r}"[:50] in message and "not a whole number of at least 1" in message
    assert len(message) < 1000


@pytest.mark.parametrize("key", ["vocab_size", "n_positions", "n_embd", "n_layer"])
@pytest.mark.parametrize("value", [64_000, 2**31, 10**12, 10**30])
def test_a_size_beyond_the_stored_tensors_is_refused_before_a_model_is_built(
    folder: Path, key: str, value: int
) -> None:
    change_config(folder, lambda config: config.update({key: value}))
    assert "tensor transformer." in load_error(folder)


def test_deeply_nested_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' + "[" * 100_000, encoding="utf-8")
    assert "config.json is missing or not readable: " in load_error(folder)


def test_a_size_too_long_for_a_number_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"n_head": ' + "9" * 10_000 + "}", encoding="utf-8")
    assert "config.json is missing or not readable: " in load_error(folder)


def test_a_full_disk_is_a_message_and_leaves_no_part_of_the_weights(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(ModelError, match=r"model\.safetensors can't be written: .*Make room"):
            save_model(tmp_path, tiny_model())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("model")] == []
