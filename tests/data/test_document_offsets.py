"""Document boundaries of a corpus."""

import json
from pathlib import Path

import pytest

from reprogpt.data.document_offsets import read_offsets, split_offsets
from reprogpt.errors import DataError


def test_each_part_of_a_split_has_the_boundaries_within_it() -> None:
    assert split_offsets([3, 5, 9], 5) == ([3], [4])
    assert split_offsets([3, 5, 9], 6) == ([3, 5], [3])
    assert split_offsets([], 5) == ([], [])


@pytest.mark.parametrize("ends", [[0], [4], [5], [2, 2], [3, 1]])
def test_boundaries_that_do_not_fit_the_text_are_refused(tmp_path: Path, ends: list[int]) -> None:
    (tmp_path / "text").write_bytes(b"four")
    (tmp_path / "ends.json").write_text(json.dumps({"ends": ends}))
    with pytest.raises(DataError, match=r"ends\.json does not fit .*text: .* `dvc repro` writes both again"):
        read_offsets(tmp_path / "ends.json", "ends", tmp_path / "text")
    with pytest.raises(DataError, match="none is missing; `dvc repro` writes both again"):
        read_offsets(tmp_path / "ends.json", "ends", tmp_path / "none")
