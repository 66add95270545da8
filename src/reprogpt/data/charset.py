"""Recognizes files that are not UTF-8 text, for messages that say how to convert them. Nothing is converted here."""

import re

SAMPLE_BYTES = 1 << 14
_MIN_NULS, _MAX_NUL_SHARE = 16, 0.01  # a text may contain a stray NUL, but not this many
_MAGIC = {
    b"\x1f\x8b": "a gzip file: unpack it with gunzip, or give it a name in .gz",
    b"PK\x03\x04": "a zip file: unpack it and use the text in it",
    b"%PDF-": "a PDF file: extract its text, for example with `pdftotext FILE.pdf FILE.txt`",
    b"\x28\xb5\x2f\xfd": "a Zstandard file: unpack it with unzstd, or give it a name in .zst",
}
# Byte order marks; UTF-32's first, since one of them begins as UTF-16's.
_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_ISO_2022 = re.compile(rb"\x1b\$[@B]|\x1b\([BJ]")  # switches between character sets; these bytes are valid UTF-8
# Python's name -> the usual name, and iconv's name. A superset stands for the encodings that it contains.
_ENCODINGS = {
    "cp932": ("Shift_JIS", "CP932"),
    "euc_jp": ("EUC-JP", "EUC-JP"),
    "cp949": ("EUC-KR", "CP949"),
    "gb18030": ("GBK", "GB18030"),
    "big5": ("Big5", "BIG5"),
    "utf_16_le": ("UTF-16", "UTF-16LE"),
    "utf_16_be": ("UTF-16", "UTF-16BE"),
    "utf_32_le": ("UTF-32", "UTF-32LE"),
    "utf_32_be": ("UTF-32", "UTF-32BE"),
    "cp1251": ("Windows-1251", "CP1251"),
    "koi8_r": ("KOI8-R", "KOI8-R"),
    "cp1252": ("Latin-1", "CP1252"),
}


def why_not_utf8(first_bytes: bytes) -> str | None:
    """What kind of file begins with these bytes, and what to do, if it is certainly not UTF-8 text; None if it may be.

    Some of these are valid UTF-8, but would be tokenized as control characters.
    """
    for magic, words in _MAGIC.items():
        if first_bytes.startswith(magic):
            return f"is {words}"
    for mark, encoding in _MARKS.items():
        if first_bytes.startswith(mark):
            return f"is {encoding} text; {_conversion(encoding)}"
    sample = first_bytes[:SAMPLE_BYTES]
    if len(_ISO_2022.findall(sample)) > 1:
        return f"is ISO-2022-JP text; {_conversion('ISO-2022-JP')}"
    num_nuls = sample.count(0)
    if num_nuls >= _MIN_NULS and num_nuls > _MAX_NUL_SHARE * len(sample):
        advice = conversion_advice(first_bytes)
        return f"has {num_nuls} NUL bytes in its first {len(sample)}, so it is not UTF-8 text; {advice}"
    return None


def conversion_advice(content: bytes) -> str:
    """How to convert a text to UTF-8; its encoding is guessed from its bytes."""
    # Imported here: needed only for such files.
    from charset_normalizer import from_bytes

    for cut in range(4):  # the sample may end inside a character
        sample = content[: min(SAMPLE_BYTES, len(content)) - cut]
        guess = from_bytes(sample, cp_isolation=list(_ENCODINGS)).best() if sample else None
        if guess:
            is_japanese = guess.encoding == "cp949" and _has_kana(sample)
            name, iconv_name = _ENCODINGS["euc_jp" if is_japanese else guess.encoding]
            return f"it looks like {name}: {_conversion(iconv_name)}"
    return "convert it to UTF-8"


def _has_kana(sample: bytes) -> bool:
    """Whether a text, read as EUC-JP, has hiragana, as Japanese has everywhere. EUC-KR has rare letters there."""
    text = sample.decode("euc_jp", "ignore")
    return sum("ぁ" <= character <= "ん" for character in text) > len(text) / 10


def _conversion(iconv_name: str) -> str:
    return f"convert it to UTF-8, and check that it reads right:\niconv -f {iconv_name} -t UTF-8 FILE > FILE.utf8.txt"
