"""Token ids: encoded without a network, and stored in files that are checked when read."""

import os
import socket
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import tiktoken
from tiktoken import registry

from reprogpt.data.tokens import (
    contains,
    decode,
    encode,
    load_encoding,
    num_bytes,
    read_tokens,
    write_tokenizer,
    write_tokens,
)
from reprogpt.errors import DataError

UINT16 = np.dtype(np.uint16)
# tiktoken's names of the two cached files: the SHA-1 of their addresses.
CACHED = {"6c7ea1a7e38e3a7f062df639a5b80947f075ffe6", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket can be created."""

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def fresh_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiktoken that has loaded nothing yet in this process."""
    monkeypatch.setattr(registry, "ENCODINGS", {})


@pytest.fixture(scope="module")
def encoding() -> tiktoken.Encoding:
    return load_encoding("gpt2")


def cache() -> Path:
    return Path(os.environ["REPROGPT_CACHE"]) / "tiktoken"


def test_encoding_loads_with_an_empty_cache_and_no_network(fresh_tiktoken: None, no_network: None) -> None:
    assert not cache().exists()
    assert load_encoding("gpt2").n_vocab == 50257
    assert {path.name for path in cache().iterdir()} == CACHED


def test_a_corrupt_cached_vocabulary_is_replaced(fresh_tiktoken: None, no_network: None) -> None:
    load_encoding("gpt2")
    valid = {path: path.read_bytes() for path in cache().iterdir()}
    for path, content in valid.items():
        path.write_bytes(content[:1000])
    registry.ENCODINGS.clear()
    assert load_encoding("gpt2").encode_ordinary("Every effort") == [6109, 3626]
    assert {path: path.read_bytes() for path in cache().iterdir()} == valid


def test_a_valid_cached_vocabulary_is_not_written_again(fresh_tiktoken: None, no_network: None) -> None:
    load_encoding("gpt2")
    before = {path: path.stat().st_mtime_ns for path in cache().iterdir()}
    for path in before:
        path.chmod(0o444)
    load_encoding("gpt2")
    assert {path: path.stat().st_mtime_ns for path in cache().iterdir()} == before


def test_the_cache_folder_of_tiktokens_variable_is_used(
    fresh_tiktoken: None, no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "chosen"))
    load_encoding("gpt2")
    assert {path.name for path in (tmp_path / "chosen").iterdir()} == CACHED
    assert not cache().exists()


def test_a_cache_that_cannot_be_written_names_the_folder_and_the_variable() -> None:
    cache().parent.mkdir(exist_ok=True)
    cache().write_bytes(b"a file where the folder should be")
    with pytest.raises(DataError, match=f"{cache()}.*set TIKTOKEN_CACHE_DIR"):
        load_encoding("gpt2")


def test_ids_are_those_that_the_book_prints(encoding: tiktoken.Encoding) -> None:
    ids = encode(encoding, "Every effort moves you")
    assert ids.dtype == np.uint16
    assert ids.tolist() == [6109, 3626, 6100, 345]


def test_a_special_token_in_the_text_is_encoded_as_plain_text(encoding: tiktoken.Encoding) -> None:
    ids = encode(encoding, "<|endoftext|>")
    assert 50256 not in ids
    assert decode(encoding, ids.tolist()) == "<|endoftext|>"


@pytest.mark.parametrize("text", ["", " \r\n\t", "“Low tide,” said Ann.\r\nIt was.\n", "naïve 漢字 🙂"])
def test_decoding_undoes_encoding(encoding: tiktoken.Encoding, text: str) -> None:
    ids = encode(encoding, text)
    assert ids.dtype == np.uint16
    assert decode(encoding, ids.tolist()) == text
    assert num_bytes(encoding, ids) == len(text.encode())


def test_bytes_are_counted_for_every_occurrence(encoding: tiktoken.Encoding) -> None:
    assert num_bytes(encoding, np.array([6109, 3626, 3626, 3626], np.uint16)) == 5 + 3 * 7  # "Every", " effort"


def test_an_id_beyond_the_encoding_decodes_to_a_replacement_character(encoding: tiktoken.Encoding) -> None:
    assert decode(encoding, [6109, 50257, 3626]) == "Every\ufffd effort"


def test_half_a_character_decodes_to_a_replacement_character(encoding: tiktoken.Encoding) -> None:
    ids = encoding.encode_ordinary("🙂")
    assert len(ids) > 1
    assert decode(encoding, ids[:1]) == "\ufffd"


def test_ids_are_read_as_they_were_written(tmp_path: Path) -> None:
    ids = np.array([40, 367, 50256], np.uint16)
    write_tokens(tmp_path / "ids.npy", [ids], dtype=UINT16)
    again = read_tokens(tmp_path / "ids.npy", vocab_size=50257)
    assert again.dtype == np.uint16
    assert again[:].tolist() == [40, 367, 50256]
    assert again[1:9].tolist() == [367, 50256]
    assert again[3:].size == again[2:1].size == 0
    assert [path.name for path in tmp_path.glob("*.npy*")] == ["ids.npy"]


def test_a_token_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    write_tokens(path, [np.arange(3, dtype=np.uint16)], dtype=UINT16)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=f"{path} is truncated or not a token file.*dvc checkout"):
            read_tokens(path, vocab_size=64)


def test_a_token_file_cut_while_it_is_in_use_is_an_error_not_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    write_tokens(path, [np.arange(30_000, dtype=np.uint16)], dtype=UINT16)
    ids = read_tokens(path, vocab_size=50257)
    os.truncate(path, 9000)
    assert ids[:4000].tolist() == list(range(4000))
    with pytest.raises(DataError, match=rf"{path} was cut to 9000 bytes while it was in use; .*dvc checkout"):
        ids[4000:5000]


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ids\.npy is missing; restore it with `dvc checkout`"):
        read_tokens(tmp_path / "ids.npy", vocab_size=64)


@pytest.mark.parametrize(
    ("ids", "shown"),
    [
        (np.zeros(3, np.int64), "1-dimensional int64"),
        (np.zeros(3, ">u2"), "1-dimensional >u2"),
        (np.zeros((2, 2), np.uint16), "2-dimensional uint16"),
        (np.zeros((), np.uint16), "0-dimensional uint16"),
    ],
)
def test_another_type_or_shape_is_refused(tmp_path: Path, ids: np.ndarray, shown: str) -> None:
    np.save(tmp_path / "ids.npy", ids)
    with pytest.raises(DataError, match=f"holds {shown}, not 1-dimensional uint16"):
        read_tokens(tmp_path / "ids.npy", vocab_size=64)


def test_pickled_objects_are_refused_unread(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="not a token file"):
        read_tokens(tmp_path / "ids.npy", vocab_size=64)


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    write_tokens(tmp_path / "ids.npy", [np.array([0, 64, 63], np.uint16)], dtype=UINT16)
    with pytest.raises(DataError, match="holds token id 64, but vocab_size=64 allows 0 to 63"):
        read_tokens(tmp_path / "ids.npy", vocab_size=64)
    assert len(read_tokens(tmp_path / "ids.npy", vocab_size=65)) == 3


def test_a_token_is_found_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reprogpt.data.tokens.CHECKED_TOKENS", 4)
    ids = np.arange(10, dtype=UINT16)
    assert [contains(ids, token) for token in (0, 3, 4, 9, 10)] == [True, True, True, True, False]


def test_the_bytes_of_a_part_of_the_tokens_are_counted(
    encoding: tiktoken.Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reprogpt.data.tokens.CHECKED_TOKENS", 2)
    ids = np.array(encoding.encode_ordinary("Every effort moves you"), UINT16)
    assert num_bytes(encoding, ids, 1, 3) == len(" effort moves")


def test_the_tokenizer_is_written_in_three_files_without_pickle(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "model", 8)
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["merges.txt", "tokenizer_config.json", "vocab.json"]
