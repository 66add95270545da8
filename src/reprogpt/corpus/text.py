"""The corpus as text: read it, cut it in two."""

from pathlib import Path

from reprogpt.errors import DataError


def read_text(path: Path) -> str:
    """A corpus file's text, newlines untouched. Raises DataError if there is none."""
    try:
        return decode_text(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}; `dvc repro` makes it") from None


def split_text(text: str, train_ratio: float) -> tuple[str, str]:
    """Cut `text` in a part to train on and one to validate on, at character int(train_ratio * n) of n.

    train_ratio: 0 to 1. Raises DataError if a part would be empty.
    """
    cut = int(train_ratio * len(text))
    if not 0 < cut < len(text):
        raise DataError(
            f"train_ratio={train_ratio} cuts {len(text)} characters into {cut} and {len(text) - cut}; "
            "neither part may be empty: change train_ratio, or use a longer text"
        )
    return text[:cut], text[cut:]


def decode_text(content: bytes, name: str) -> str:
    """A file's bytes as text. Raises DataError, calling it `name`, if they are not UTF-8 or only white space."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8 text: byte 0x{content[error.start]:02x} at offset {error.start}; convert it to UTF-8"
        ) from None
    if not text or text.isspace():
        rest = ", all white space" if text else ""
        raise DataError(f"{name} is empty: {len(content)} bytes{rest}; a text is needed")
    return text
