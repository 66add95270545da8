"""The pages are what docs/results.csv gives, and what a row becomes on them."""

from pathlib import Path

import pytest

from reprogpt.dvc.digest import content_md5
from reprogpt.dvc.revisions import resolve_commit
from reprogpt.errors import PipelineError
from reprogpt.params.loader import read_mapping
from reprogpt.paths import EVAL_RESULTS, HISTORY
from reprogpt.runs.results import COLUMNS, RESULTS, Row, evaluation_rows, table_csv
from reprogpt.runs.verify_row import numbers_in
from tools import result_pages
from tools.result_pages import Results, pages, present_results, render

ROOT = Path(__file__).resolve().parents[2]
PARAMS = read_mapping(ROOT / "params.yaml")
SMALL = "emb_dim=64"


def row(overrides: str = "", seed: int = 123, code: str = "now", **cells: float) -> Row:
    weights = f"{overrides}{seed}{code}".encode().hex()[-8:].rjust(64, "a")[::-1]
    numbers = {name: repr(value) for name, value in cells.items()}
    named = {"overrides": overrides, "seed": str(seed), "code": code, "weights": weights, "commit": "c" * 40}
    return dict.fromkeys(COLUMNS, "") | named | {"device": "cpu", "matmul": "portable"} | numbers


def block(name: str, *rows: Row, evaluations: list[Row] | None = None) -> list[str]:
    """What stands between the marks of a block."""
    published = [{"step": "0", "train_loss": "10.934", "val_loss": "10.939"}]
    results = Results(list(rows), evaluations or [], published, "now", PARAMS)
    text = render(f"a\n<!-- results: {name} -->\nold\n<!-- /results -->\nb", results)
    head, _, rest = text.partition(" -->\n")
    body, _, tail = rest.partition("<!-- /results -->")
    assert (head, tail) == (f"a\n<!-- results: {name}", "\nb")
    return [line for line in body.splitlines() if line]


def pairs(lr: str, *values: float) -> list[Row]:
    return [row(lr, seed, final_val_loss=value) for seed, value in enumerate(values, 1)]


def test_the_pages_are_what_the_files_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make results` makes them so."""
    monkeypatch.chdir(ROOT)
    made = pages(present_results())
    assert set(made) >= {Path("README.md"), Path("docs/results.md")}
    for path, text in made.items():
        assert path.read_text("utf-8") == text


def test_the_default_row_is_what_dvc_lock_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And the quickstart of the README prints its numbers."""
    monkeypatch.chdir(ROOT)
    results = present_results()
    default = next((row for row in results.trainings if not row["overrides"]), None)
    head = resolve_commit("HEAD")
    if default is None or head is None:
        pytest.skip("the default training is not in docs/results.csv, or there is no git history")
    for path in (HISTORY, EVAL_RESULTS):
        content = head.read(str(path)) or b""
        assert content_md5(content) == head.recorded_outs[str(path)]
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    numbers, evaluations = numbers_in(tmp_path)
    assert {name: default[name] for name in numbers} == numbers
    lines = evaluation_rows(default["weights"], evaluations)
    assert [line for line in results.evaluations if line["weights"] == lines[0]["weights"]] == lines
    losses = {name: float(value) for name, value in numbers.items()}
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"Train loss {losses['last_train_loss']:.3f}, Val loss {losses['last_val_loss']:.3f}\n" in readme
    assert f"validation loss {losses['final_val_loss']:.3f}, perplexity {losses['val_perplexity']:.1f}\n" in readme


def test_a_training_is_a_line_with_the_first_digits_of_its_weights() -> None:
    one = row(final_val_loss=6.4710731, best_step=50)
    lines = block("trainings final_val_loss best_step", one, row("peak_lr=0.001"), row("beta1=0.8"), row(SMALL))
    assert lines[0] == "| training | seed | `final_val_loss` | `best_step` | weights |"
    assert lines[2] == f"| default | 123 | 6.471 | 50 | `{one['weights'][:8]}` |"
    assert lines[3].startswith("| `peak_lr=0.001` | 123 |  |  | `") and len(lines) == 4


def test_other_trainings_stand_below_the_one_of_their_seed() -> None:
    base = [row("peak_lr=0.001", seed, loss_jump=5.0, loss_jump_step=28) for seed in (123, 1)]
    lines = block("others loss_jump loss_jump_step", row(), *base, row("clip_from=start peak_lr=0.001", loss_jump=0.25))
    assert [line.rpartition(" | `")[0] for line in lines[2:]] == [
        "| `peak_lr=0.001` | 123 | +5.00 | 28",
        "| `clip_from=start peak_lr=0.001` | 123 | +0.25 | ",
    ]


def test_a_row_of_older_code_is_marked_and_its_commit_named() -> None:
    lines = block("trainings final_val_loss", row(), row("peak_lr=0.001", code="then"))
    assert not lines[2].endswith("† |") and lines[3].endswith("`† |")
    assert lines[4] == f"† Of older code, commit `{'c' * 12}`."


def test_a_verdict_names_the_older_code_of_the_rows_it_compares() -> None:
    small = [
        row(f"{SMALL} peak_lr={rate}", seed, code="then", final_val_loss=1.0) for rate in (1, 2) for seed in (1, 2)
    ]
    pair = [row(lr, seed, final_val_loss=6.5) for lr in ("", "peak_lr=0.001") for seed in (1, 2)]
    older = f"† Of older code, commit `{'c' * 12}`."
    assert block("decide full peak_lr final_val_loss", *small, *pair)[-1] == "```"
    assert block("decide full peak_lr final_val_loss", *(one | {"code": "then"} for one in pair))[-1] == older
    assert block("verdict full peak_lr final_val_loss", *(one | {"code": "then"} for one in pair))[-1] == older
    assert older not in block("verdict full peak_lr final_val_loss", *pair)
    small = [one | {"overrides": one["overrides"].replace("lr=1", "lr=0.005")} for one in small]
    assert block("small peak_lr", *small)[-1] == older


def test_of_two_rows_of_one_training_that_of_the_present_code_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(result_pages, "code_digest", lambda revision: "now")
    (tmp_path / "params.yaml").write_text("seed: 123\n", "utf-8")
    RESULTS.parent.mkdir()
    rows = [row(code="then"), row(code="now"), row("peak_lr=0.001", code="then")]
    RESULTS.write_text(table_csv(COLUMNS, rows), "utf-8")
    assert [one["code"] for one in present_results().rows] == ["now", "then"]


def test_evaluations_stand_beside_the_published_ones() -> None:
    book = row("peak_lr=0.001 random_order=book")
    evaluations = evaluation_rows(book["weights"], {0: {"train_loss": 10.9362, "val_loss": 10.94}})
    lines = block("steps", book, evaluations=evaluations)
    assert lines[2] == "| 0 | 10.934 / 10.939 | 10.936 / 10.940 |"
    assert "within 0.0022 (training) and 0.0010 (validation)" in block("book", book, evaluations=evaluations)[0]


def test_a_verdict_is_decides_own() -> None:
    rows = pairs("", *[6.5] * 7) + pairs("peak_lr=0.001", *[6.6] * 7) + [row(SMALL, 1)]
    rows += [row(final_val_loss=9.0)]  # of a seed that the other value lacks
    lines = block("decide full peak_lr final_val_loss", *rows)
    assert lines[0] == "```text" and lines[-1] == "```"
    assert lines[1].startswith("peak_lr by final_val_loss (lower is better)")
    assert any(line.startswith("peak_lr=0.001 is worse than 0.0005 for the typical seed, in 7 of 7") for line in lines)
    (line,) = block("verdict full peak_lr final_val_loss best_val_loss", *rows)
    assert line.startswith("- By `final_val_loss`: peak_lr=0.001 is worse than 0.0005")


def test_a_verdict_on_the_small_model_is_of_its_own_rate() -> None:
    rows = pairs(f"{SMALL} peak_lr=0.005", *[6.0] * 6) + pairs(f"{SMALL} peak_lr=0.005 tie_weights=true", *[6.25] * 6)
    rows += pairs(f"{SMALL} peak_lr=0.01", *[7.0] * 6) + pairs("", *[6.5] * 7)
    (line,) = block("verdict small tie_weights final_val_loss", *rows)
    assert line.startswith(
        "- By `final_val_loss`: tie_weights=true is worse than false for the typical seed, in 6 of 6"
    )
    assert "in 6 of 6" in block("verdict small peak_lr final_val_loss", *rows)[0]


def test_the_small_models_tables_compare_with_its_own_rate() -> None:
    rows = pairs(f"{SMALL} peak_lr=0.005", 6.0, 6.5, 6.25) + pairs(f"{SMALL} peak_lr=0.01", 6.5, 7.0, 7.0)
    rows += pairs(f"{SMALL} lr_decay=linear peak_lr=0.005", 5.0, 5.5, 5.125)
    none = "| none | 6.2500 | 0.2500 |  |  |  |  |"
    higher = "| `peak_lr=0.01` | 6.8333 | 0.2887 | +0.5833 | 0 of 3 | 0.87 | 7.0 |"
    linear = "| `lr_decay=linear` | 5.2083 | 0.2602 | -1.0417 | 3 of 3 | 0.96 | 25.0 |"
    assert block("small peak_lr", *rows)[2:] == [none, higher]
    assert block("small lr_decay keep", *rows)[2:] == [none, linear]
    assert block("small peak_lr lr_decay", *rows)[2:] == [none, higher, linear]


@pytest.mark.parametrize(
    "name",
    [
        "trainings loss_jump",
        "seeds loss_jump",
        "steps",
        "book",
        "decide full peak_lr loss_jump",
        "decide small keep loss_jump",
        "verdict full peak_lr loss_jump",
        "small keep",
    ],
)
def test_a_block_whose_trainings_are_not_there_yet_is_empty(name: str) -> None:
    assert block(name) == block(name, row("beta1=0.8", 99)) == block("others loss_jump", row()) == []


@pytest.mark.parametrize(
    "name", ["trainings nonsense", "decide full peek_lr loss_jump", "decide full peak_lr loss_jump kep=1"]
)
def test_a_misspelled_argument_of_a_block_is_named(name: str) -> None:
    with pytest.raises(
        PipelineError, match=r"results: (nonsense|peek_lr|kep): neither a number of a row nor a parameter"
    ):
        block(name, row())


def test_a_block_that_does_not_exist_is_named() -> None:
    with pytest.raises(PipelineError, match="results: tabel is none of trainings, seeds"):
        block("tabel")
