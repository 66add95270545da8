"""Atomic writes, file digests and the download cache's folder."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest

from reprogpt.data.tokens import load_encoding
from reprogpt.errors import DataError
from reprogpt.files import (
    atomic_path,
    file_digest,
    read_json,
    read_json_or_empty,
    require_writable,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from reprogpt.paths import cache_folder


def test_a_write_makes_parent_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_bytes_atomic(tmp_path / "a/b/c", b"new")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "c"]
    assert (tmp_path / "a/b/c").read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_file_unchanged(tmp_path: Path) -> None:
    write_bytes_atomic(tmp_path / "c", b"old")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "c") as temporary:
        temporary.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"c": b"old"}


def test_the_old_file_is_there_until_the_block_ends(tmp_path: Path) -> None:
    write_bytes_atomic(tmp_path / "c", b"old")
    with atomic_path(tmp_path / "c") as temporary:
        temporary.write_bytes(b"new")
        assert (tmp_path / "c").read_bytes() == b"old"
    assert (tmp_path / "c").read_bytes() == b"new"


def test_contents_are_flushed_to_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def recorded(name: str) -> Callable[..., None]:
        original = getattr(os, name)

        def call(*arguments: object) -> None:
            events.append(name)
            original(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, recorded(name))
    write_bytes_atomic(tmp_path / "c", b"new")
    assert events == ["fsync", "replace", "fsync"]  # contents, name, and the folder that holds the name


def test_temporary_files_of_killed_writers_are_removed_but_not_of_running_ones(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, written = tmp_path / f".c.{gone.pid}.tmp", tmp_path / ".c.1.tmp"
    other = tmp_path / f".cc.{gone.pid}.tmp"
    for path in (left, written, other):
        path.write_bytes(b"half")
    write_bytes_atomic(tmp_path / "c", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".c.1.tmp", other.name, "c"])


def test_a_hard_link_into_a_cache_keeps_its_bytes(tmp_path: Path) -> None:
    cached, out = tmp_path / "cached", tmp_path / "out"
    cached.write_bytes(b"old")
    cached.chmod(0o444)
    out.hardlink_to(cached)
    write_bytes_atomic(out, b"new")
    assert (cached.read_bytes(), out.read_bytes()) == (b"old", b"new")


def test_text_is_written_as_utf8_with_its_line_ends(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "c", "é\r\nb\n")
    assert (tmp_path / "c").read_bytes() == b"\xc3\xa9\r\nb\n"


def test_json_is_readable_and_ends_in_a_newline(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "c", {"b": 0.1, "a": "é"})
    assert (tmp_path / "c").read_text("utf-8") == '{\n  "b": 0.1,\n  "a": "é"\n}\n'


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_refuses_what_other_readers_cannot_read(tmp_path: Path, value: float) -> None:
    write_json_atomic(tmp_path / "c", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(tmp_path / "c", {"a": value})
    assert json.loads((tmp_path / "c").read_bytes()) == {"a": 1}


def test_digests_are_those_of_the_standards(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"abc")
    assert file_digest(tmp_path / "c") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "c", "md5") == "900150983cd24fb0d6963f7d28e17f72"


def test_downloads_go_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPROGPT_CACHE", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere"


def test_a_tilde_in_the_variable_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REPROGPT_CACHE", "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"


def test_a_relative_variable_counts_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPROGPT_CACHE", "elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"


@pytest.mark.parametrize("value", [None, ""])
def test_downloads_go_to_the_platforms_cache_folder_by_default(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REPROGPT_CACHE")
    if value is not None:
        monkeypatch.setenv("REPROGPT_CACHE", value)
    assert cache_folder() == Path(platformdirs.user_cache_dir("reprogpt", appauthor=False))


@pytest.mark.parametrize("home", ["/proc/none", None])
def test_without_a_home_folder_that_can_be_written_downloads_stay_in_the_repository(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REPROGPT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if home is None:  # and no entry in /etc/passwd: expanduser leaves the tilde
        monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: Path("~/.cache/reprogpt"))
    else:
        monkeypatch.setenv("HOME", home)
    assert cache_folder() == tmp_path / ".reprogpt/cache"
    assert list(tmp_path.iterdir()) == []
    assert load_encoding("gpt2").n_vocab == 50257
    assert len(list((tmp_path / ".reprogpt/cache/tiktoken").iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_refused_with_its_name(tmp_path: Path) -> None:
    require_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/model can't be written: Not a directory"):
        require_writable(tmp_path / "file" / "model")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b'"key"', b"\xff", b"{}"])
def test_a_json_file_without_the_object_that_is_needed_is_refused_with_the_remedy(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json can't be used: .*; write it again"):
        read_json(path, needs="key", remedy="write it again")
    assert read_json_or_empty(path) == {}


def test_a_json_object_is_read(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "a.json", {"key": "é"})
    assert read_json(tmp_path / "a.json", needs="key", remedy="") == {"key": "é"}
    assert read_json_or_empty(tmp_path / "a.json") == {"key": "é"}
