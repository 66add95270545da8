"""Rows of docs/results.csv: what names them, and what their cells say."""

from pathlib import Path
from typing import Any

import pytest

from reprogpt.dvc.revisions import Workspace
from reprogpt.errors import PipelineError
from reprogpt.runs.results import (
    COLUMNS,
    RESULTS,
    Row,
    code_digest,
    find_row,
    numbers_of,
    overrides_of,
    params_of,
    read_table,
    table_csv,
)


def row(**cells: str) -> Row:
    return dict.fromkeys(COLUMNS, "") | {"seed": "1"} | cells


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    RESULTS.parent.mkdir()
    return tmp_path


def test_a_row_is_named_by_the_first_digits_of_its_weights(folder: Path) -> None:
    rows = [row(weights="abcdef11" + "0" * 56), row(weights="abcdef22" + "0" * 56, overrides="peak_lr=0.001")]
    RESULTS.write_text(table_csv(COLUMNS, rows), "utf-8")
    assert find_row("abcdef1") == rows[0]
    assert find_row("ABCDEF22") == rows[1]
    with pytest.raises(PipelineError, match=r"names 2 rows[^$]*peak_lr=0.001, seed 1"):
        find_row("abcdef")
    with pytest.raises(PipelineError, match="abcdef3 names none of the 2 rows"):
        find_row("abcdef3")
    for digits in ("abcde", "abcdeg", ""):
        with pytest.raises(PipelineError, match=f"^{digits} is no digest: give the first 6 or more hexadecimal"):
            find_row(digits)


def test_overrides_are_what_differs_from_the_commit_and_read_back_as_the_same_values() -> None:
    base: dict[str, Any] = {"seed": 123, "peak_lr": 0.0005, "max_norm": 1.0, "lr_decay": "cosine", "start": "a", "n": 1}
    changed = {"seed": 3, "peak_lr": 1e-05, "max_norm": None, "lr_decay": "none", "start": "it's: # two\nlines", "n": 1}
    words = overrides_of(changed, base)
    assert words.startswith("lr_decay=none max_norm=null peak_lr=1e-05 ")
    assert params_of(row(overrides=words, seed="3"), base) == changed
    assert overrides_of(base | {"seed": 3}, base) == ""
    for text in ("true", "null", "1e5", "~", "", "0.1"):
        words = overrides_of({"start": text}, {"start": "a"})
        assert params_of(row(overrides=words), {}) == {"start": text, "seed": 1}


def test_numbers_are_the_last_the_best_and_the_largest_rise() -> None:
    losses = {0: 5.0, 1: 4.0, 2: 4.5, 3: 4.75, 4: 1 / 3}
    evaluations = {0: {"train_loss": 5.0, "val_loss": 5.0}, 2: {"train_loss": 4.0, "val_loss": 4.5}}
    evaluations[4] = {"train_loss": 0.1, "val_loss": 4.5}
    numbers = numbers_of(losses, evaluations, {"final_val_loss": 0.1 + 0.2})
    assert numbers == {
        "final_val_loss": "0.30000000000000004",
        "last_train_loss": "0.1",
        "last_val_loss": "4.5",
        "best_val_loss": "4.5",
        "best_step": "2",
        "loss_jump": "0.5",
        "loss_jump_step": "2",
    }
    assert numbers_of({0: 1.0}, {}, {}) == {}


def test_a_table_reads_back_as_it_was_written(folder: Path) -> None:
    rows = [row(overrides='start="a, b"', weights="a" * 64)]
    RESULTS.write_text(table_csv(COLUMNS, rows), "utf-8")
    assert read_table(RESULTS) == rows
    assert read_table(Path("none.csv")) == []


@pytest.mark.parametrize(("path", "changes"), [("src/a.py", True), ("requirements.lock", True), ("data/b", False)])
def test_older_code_is_another_dep_that_is_no_data_or_another_default(path: str, changes: bool) -> None:
    deps = {"src/a.py": "1", "requirements.lock": "2", "data/b": "3"}

    def revision(digests: dict[str, str], peak_lr: float = 0.1) -> Workspace:
        class Given(Workspace):
            def digest(self, path: str) -> str | None:
                return digests[path]

        given = Given()
        given.stages, given.params = {"train": {"deps": deps}, "evaluate": {"deps": []}}, {"peak_lr": peak_lr}
        return given

    here = code_digest(revision(deps))
    assert (code_digest(revision(deps | {path: "other"})) != here) == changes
    assert code_digest(revision(deps, peak_lr=0.2)) != here
