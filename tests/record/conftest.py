"""Boxes that a test leaves open are closed: another test, for which warnings are errors, would pay for them."""

from collections.abc import Iterator
from typing import Any

import pytest

from reprogpt.record.outbox import Box


@pytest.fixture(autouse=True)
def boxes_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    opened: list[Any] = []
    make = Box.__init__

    def remember(box: Box, *arguments: Any) -> None:
        make(box, *arguments)
        opened.append(box._file)

    monkeypatch.setattr(Box, "__init__", remember)
    yield
    for file in opened:
        file.close()
