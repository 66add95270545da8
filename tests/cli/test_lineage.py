"""The lineage report, of a revision made of a few files and of runs made by hand."""

import json
from typing import Any

import pytest

from reprogpt.cli import lineage as module
from reprogpt.cli.lineage import conclusion, link_lines, revision_lines, run_lines
from reprogpt.dvc.revisions import Revision
from reprogpt.runs.find import Subject, runs_named
from reprogpt.runs.lineage import Lineage, Link, trace
from reprogpt.tracking.store.tracked_run import TrackedRun

NUMBERS = {"final_val_loss": 5.5, "val_accuracy": 0.25}
DVC = """\
stages:
  train:
    cmd: fit
    deps: [src/reprogpt/training/schedule_of_rates.py]
    params: [peak_lr]
    outs: [data/model]
"""
LOCK = """\
stages:
  train:
    cmd: fit
    deps: [{path: src/reprogpt/training/schedule_of_rates.py, md5: c}]
    params: {params.yaml: {peak_lr: 1e-05}}
    outs: [{path: data/model, md5: m.dir}]
"""


class GivenRevision(Revision):
    """A revision of given texts; every digest is given, too."""

    name = "the test"

    def __init__(self, texts: dict[str, str], digests: dict[str, str]) -> None:
        self.texts, self.digests = texts, digests

    def read(self, path: str) -> bytes | None:
        return self.texts[path].encode() if path in self.texts else None

    def digest(self, path: str) -> str | None:
        return self.digests.get(path)


def revision(numbers: Any = NUMBERS, **digests: str) -> GivenRevision:
    texts = {"dvc.yaml": DVC, "dvc.lock": LOCK, "params.yaml": "peak_lr: 0.00001\n"}
    texts["data/metrics/eval.json"] = json.dumps(numbers)
    made = GivenRevision(texts, {"src/reprogpt/training/schedule_of_rates.py": "c", "data/model": "m.dir"} | digests)
    texts["data/metrics/train.json"] = json.dumps({"run_key": [made.lock_key]})
    return made


def run(letter: str, *, key: str | None, weights: Any = "m.dir", **metrics: float) -> TrackedRun:
    tags = {"run_key": key or "", "dvc.data/model.md5": weights, "corpus.url": "https://host/the-verdict.txt"}
    return TrackedRun(letter * 32, f"run-{letter}", "FINISHED", {}, tags, metrics)


def lines_of(of: Revision, *runs: TrackedRun) -> tuple[list[str], bool]:
    traced = trace(Subject(None, of), runs)
    return revision_lines(traced, of, has_name=bool(runs_named(of.experiment, runs))), traced.is_broken


def test_a_revision_whose_links_hold_names_its_run() -> None:
    here = revision()
    lines, broken = lines_of(here, run("a", key=here.lock_key, **NUMBERS), run("b", key="other", weights="n"))
    assert not broken
    assert "  holds     made by cmd, 1 dep, 1 param" in lines
    assert "  holds     data/model                    m.dir" in lines
    assert f"  {'a' * 32}  FINISHED  run-a  the-verdict.txt" in lines
    assert not any("b" * 32 in line for line in lines)
    assert f"  holds     all 2                         run {'a' * 32}" in lines


def test_no_run_of_the_key_but_one_of_the_same_weights() -> None:
    lines, broken = lines_of(revision(), run("a", key="other", **NUMBERS), run("b", key="another", weights="n"))
    assert not broken
    heading = lines.index("MLflow runs that made these weights, by the digest of data/model")
    assert lines[heading + 1] == f"  {'a' * 32}  FINISHED  run-a  the-verdict.txt  from other inputs"
    assert f"  holds     all 2                         run {'a' * 32}" in lines
    assert not any("run-b" in line for line in lines)


def test_the_run_with_the_numbers_is_found_by_its_weights_beside_one_of_the_key() -> None:
    """As where another processor made other weights from the same inputs."""
    here = revision()
    of_key = run("b", key=here.lock_key, weights="n.dir", final_val_loss=1.0, val_accuracy=1.0)
    lines, broken = lines_of(here, of_key, run("a", key="other", **NUMBERS))
    assert not broken
    assert f"  {'a' * 32}  FINISHED  run-a  the-verdict.txt  from other inputs" in lines
    assert f"  holds     all 2                         run {'a' * 32}" in lines
    assert f"  {'b' * 32}  FINISHED  run-b  the-verdict.txt  OTHER WEIGHTS" in lines


def test_an_experiment_from_the_cache_is_reported_to_have_no_run_of_its_own() -> None:
    here = revision()
    here.experiment = "again"
    trained = run("a", key=here.lock_key, **NUMBERS)
    line = "  none is named again: DVC had this result already, or renamed the experiment"
    assert line in lines_of(here, trained)[0]
    here.experiment = "run-a"
    assert not any("none is named" in line for line in lines_of(here, trained)[0])


def test_no_run_at_all() -> None:
    lines, broken = lines_of(revision())
    assert not broken
    assert "no MLflow run made these weights" in lines
    assert "  not here  no run of these weights was evaluated" in lines


def test_a_run_of_the_key_with_other_weights_is_marked_and_its_numbers_are_not_compared_with_these() -> None:
    here = revision()
    lines, broken = lines_of(here, run("a", key=here.lock_key, weights="n", final_val_loss=1.0, val_accuracy=1.0))
    assert not broken
    assert any(line.endswith("OTHER WEIGHTS") for line in lines)


def test_another_key_in_train_json_breaks_the_link() -> None:
    here = revision()
    here.texts["data/metrics/train.json"] = '{"run_key": ["other"]}'
    lines, broken = lines_of(here)
    assert broken
    row = next(index for index, line in enumerate(lines) if line.startswith("  DIFFERS   data/metrics/train.json"))
    assert lines[row].endswith(str(here.lock_key)) and lines[row + 1].split() == ["found", "other"]


def test_other_numbers_than_the_runs_break_the_link() -> None:
    here = revision({**NUMBERS, "val_accuracy": 0.5})
    lines, broken = lines_of(here, run("a", key=here.lock_key, **NUMBERS))
    assert broken
    assert "  DIFFERS   val_accuracy                  0.25" in lines
    assert "            found                         0.5" in lines
    assert not any("final_val_loss" in line for line in lines)


def test_numbers_that_are_those_of_other_weights_break_the_link() -> None:
    """As `dvc exp save` records them after a training without an evaluation."""
    here = revision()
    lines, broken = lines_of(here, run("a", key=here.lock_key), run("b", key="old", weights="n.dir", **NUMBERS))
    assert broken
    assert "  DIFFERS   weights with these numbers    m.dir" in lines
    assert "            found                         n.dir" in lines


def test_a_changed_file_with_a_long_name_takes_three_lines() -> None:
    lines, broken = lines_of(revision(**{"src/reprogpt/training/schedule_of_rates.py": "d"}))
    assert broken
    first = lines.index("  DIFFERS   dep src/reprogpt/training/schedule_of_rates.py")
    assert lines[first + 1 : first + 3] == [
        "            recorded                      c",
        "            found                         d",
    ]


def test_a_stage_that_never_ran_is_reported() -> None:
    lines, broken = lines_of(
        GivenRevision({"dvc.yaml": DVC, "dvc.lock": "stages: {}", "params.yaml": "peak_lr: 1"}, {})
    )
    assert "  not in dvc.lock: it never ran" in lines
    assert not broken


@pytest.fixture
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resolve_commit", lambda name: name == "known")
    monkeypatch.setattr(module, "list_experiments", dict)


def report_of(tags: dict[str, str], held_by: Revision | None) -> tuple[list[str], Lineage]:
    recorded = TrackedRun("a" * 32, "run-a", "KILLED", {}, tags, {}, {"data/tokens/val.npy": "v"})
    traced = trace(Subject(recorded, held_by), [recorded])
    return [*run_lines(recorded, held_by), *link_lines(traced.run_links)], traced


@pytest.mark.usefixtures("_no_git")
def test_a_run_whose_tags_are_not_the_revisions_digests_does_not_hold() -> None:
    lines, traced = report_of({"dvc.data/model.md5": "n.dir"}, revision())
    assert traced.is_broken
    assert "  DIFFERS   data/model                    n.dir" in lines
    assert "            found                         m.dir" in lines
    assert conclusion(traced) == "NOT every link holds: see DIFFERS"


@pytest.mark.usefixtures("_no_git")
def test_a_run_that_no_revision_holds_can_not_be_checked() -> None:
    tags: dict[str, Any] = {"commit": "gone", "dirty": "true", "dvc.experiment": "lost", "corpus.sha256": "5"}
    lines, traced = report_of(tags, None)
    assert lines[0] == f"MLflow run {'a' * 32}, run-a, KILLED"
    assert "  not here  data/tokens/val.npy           v" in lines
    for part in (
        "gone, not in this repository",
        "dirty",
        "lost, no longer kept here under that name",
        "nothing here",
        "sha256      5",
    ):
        assert any(part in line for line in lines), part
    assert not traced.is_broken
    assert conclusion(traced) == "nothing here to check it against"


@pytest.mark.usefixtures("_no_git")
def test_a_commit_that_is_here_and_clean_is_plain() -> None:
    lines, _ = report_of({"commit": "known", "dirty": "false"}, None)
    assert "  commit      known" in lines
    assert not any("dirty" in line for line in lines)


def test_the_conclusion_claims_no_more_than_was_checked() -> None:
    absent, same, other = Link("a", "1", None), Link("a", "1", "1"), Link("a", "1", "2")
    subject = Subject(None, revision())
    assert conclusion(Lineage(subject)) == "nothing here to check it against"
    assert conclusion(Lineage(subject, [absent])) == "nothing here to check it against"
    assert conclusion(Lineage(subject, [absent, same])) == "every link that can be checked holds"
    assert conclusion(Lineage(subject, [absent, same, other])) == "NOT every link holds: see DIFFERS"
