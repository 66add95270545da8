"""A file that is not UTF-8 text is named, with the command that converts it."""

import gzip
import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from reprogpt.data.text import count_characters
from reprogpt.errors import DataError

JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"
CHINESE = "道可道，非常道。名可名，非常名。无名天地之始；有名万物之母。\n"  # noqa: RUF001
TRADITIONAL = "道可道，非常道。名可名，非常名。無名天地之始；有名萬物之母。\n"  # noqa: RUF001
KOREAN = "나라의 말이 중국과 달라 문자와 서로 통하지 아니하므로, 어리석은 백성이 이르고자 할 바가 있어도.\n"
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"  # noqa: RUF001
ENGLISH = "It was the best of times \u2014 it was the \u201cworst\u201d of times. Caf\u00e9.\n"
FRENCH = "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, mes yeux se fermaient.\n"
TEXTS = {
    "shift_jis": (JAPANESE, "looks like Shift_JIS"),
    "euc_jp": (JAPANESE, "looks like EUC-JP"),
    "iso2022_jp": (JAPANESE, "is ISO-2022-JP text"),
    "utf_16": (JAPANESE, "is UTF-16 text"),
    "utf_16_le": (JAPANESE, "looks like UTF-16"),
    "utf_16_be": (FRENCH, "looks like UTF-16"),
    "utf_32": (JAPANESE, "is UTF-32 text"),
    "utf_32_le": (FRENCH, "looks like UTF-32"),
    "utf_32_be": (RUSSIAN, "looks like UTF-32"),
    "euc_kr": (KOREAN, "looks like EUC-KR"),
    "cp1251": (RUSSIAN, "looks like Windows-1251"),
    "koi8_r": (RUSSIAN, "looks like KOI8-R"),
    "cp1252": (ENGLISH, "looks like Latin-1"),
    "gbk": (CHINESE, "looks like GBK"),
    "big5": (TRADITIONAL, "looks like Big5"),
    "latin_1": (FRENCH, "looks like Latin-1"),
}


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        count_characters(path)
    return str(caught.value)


@pytest.mark.parametrize("repeats", [1, 30000])
@pytest.mark.parametrize("encoding", TEXTS)
def test_the_command_of_the_message_converts_the_text(encoding: str, repeats: int, tmp_path: Path) -> None:
    text, words = TEXTS[encoding]
    message = refusal(tmp_path / "FILE", (text * repeats).encode(encoding))
    assert words in message, message
    if shutil.which("iconv"):
        subprocess.run(["sh", "-c", message.splitlines()[-1]], cwd=tmp_path, check=True)
        assert (tmp_path / "FILE.utf8.txt").read_text("utf-8") == text * repeats


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("text", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(FRENCH.encode()), "is a gzip file: unpack it with gunzip, or give it a name in .gz"),
        (zipped(FRENCH.encode()), "is a zip file: unpack it"),
        (b"%PDF-1.7\n" + FRENCH.encode(), "is a PDF file: extract its text"),
        (JAPANESE.encode()[:-2], "ends inside a character, at byte 96: it is truncated"),
        (b"one \0 NUL", "has a NUL byte at offset 4, which no text has"),
        (FRENCH.encode() * 4000 + b"\0", "has a NUL byte at offset 428000"),
        (bytes(1000), "has 1000 NUL bytes in its first 1000"),
        (b"\xff\x80\x81", "is not UTF-8 text: byte 0xff at offset 0"),
    ],
    ids=["gzip", "zip", "pdf", "cut", "one NUL", "a late NUL", "NUL", "noise"],
)
def test_other_files_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    assert words in refusal(tmp_path / "text", content)


@pytest.mark.parametrize("text", ["colours \x1b[1mbold\x1b[0m", "PK and %PDF", JAPANESE])
def test_a_text_with_a_few_odd_characters_is_a_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(text, "utf-8")
    assert count_characters(tmp_path / "text") == len(text)
