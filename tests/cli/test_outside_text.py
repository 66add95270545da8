"""What other people wrote into the MLflow store, such as the name of a run, can't steer the terminal."""

import re
from importlib import import_module
from typing import Any

import pytest

from reprogpt.errors import PipelineError
from reprogpt.messages import print_message, visible
from reprogpt.runs.find import Subject, format_runs
from reprogpt.runs.lineage import Link
from reprogpt.runs.verify import Rerun, RunEnvironments
from reprogpt.tracking.deliver.uploader import AbandonedUploads
from reprogpt.tracking.store.models import RegisteredModel
from reprogpt.tracking.store.tracked_run import TrackedRun

FORGED = "every link that can be checked holds"
HOSTILE = f"nice\x1b[2J\x9b1m\r\n{FORGED}\u202e\x07"
SHOWN = rf"nice\x1b[2J\x9b1m\r\n{FORGED}\u202e\x07"
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]")
RUNS = [
    TrackedRun(letter * 32, HOSTILE, "FINISHED", {"start_context": HOSTILE + letter}, {"corpus.url": HOSTILE})
    for letter in "ab"
]


@pytest.fixture(autouse=True)
def _a_store_of_such_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lineage", "compare", "register"):
        monkeypatch.setattr(import_module(f"reprogpt.cli.{name}"), "search_runs", lambda: RUNS)
    monkeypatch.setattr("reprogpt.cli.compare.metric_histories", lambda run_id, keys: {})
    monkeypatch.setattr("reprogpt.cli.register.register_model", lambda run_id, name: RegisteredModel(name, 1, new=True))
    subject = Subject(RUNS[0], None, f"2 runs are named so; this is the newest:{format_runs(RUNS)}")
    monkeypatch.setattr("reprogpt.cli.lineage.find_subject", lambda what, runs: subject)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lineage", {"what": "a"}),
        ("compare", {"a": "a" * 6, "b": "b" * 6}),
        ("register", {"name": "gpt", "run": "a" * 6}),
    ],
)
def test_a_runs_name_and_values_are_printed_without_control_characters(
    name: str, arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    getattr(import_module(f"reprogpt.cli.{name}"), name).callback(**arguments)
    printed = capsys.readouterr().out
    assert SHOWN in printed
    assert not CONTROL.search(printed)
    assert not any(line.startswith(FORGED) for line in printed.splitlines())


def test_neither_are_they_in_what_sync_says_of_a_refused_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sync = import_module("reprogpt.cli.sync")
    uploads = AbandonedUploads(0, [f"1 records, the first since: {HOSTILE}"], ["nice\x1b[2J\nset MLFLOW_TRACKING_URI"])
    monkeypatch.setattr(sync, "upload_abandoned", lambda *, retry: uploads)
    monkeypatch.setattr(sync, "rebuild_run", lambda: f"run {HOSTILE} lacked points")
    assert sync.sync.callback() == 1
    printed = capsys.readouterr().out
    assert printed.count(SHOWN) == 2 and "\nset MLFLOW_TRACKING_URI\n" in printed
    assert not CONTROL.search(printed)


def test_neither_are_they_in_what_verify_says_of_the_recorded_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verify = import_module("reprogpt.cli.verify")
    environments = RunEnvironments({"torch": HOSTILE}, {"torch": "2.9"})
    outs = {"train": [Link("data/model", "1", "2")]}
    monkeypatch.setattr(verify, "rerun", lambda stage: Rerun(outs, environments, origins=["train"]))
    assert verify.verify.callback(row=None, stage=None) == 1
    printed = capsys.readouterr().out
    assert SHOWN in printed and not CONTROL.search(printed)


def test_neither_are_they_in_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PipelineError) as caught:
        import_module("reprogpt.cli.compare").compare.callback("unknown", "b" * 6)
    print_message(f"error: {caught.value}\x1b[2J")
    printed = capsys.readouterr().err
    assert SHOWN in printed and printed.endswith("\\x1b[2J\n")
    assert not CONTROL.search(printed)
    assert not any(line.startswith(FORGED) for line in printed.splitlines())


def test_letters_of_any_script_are_visible_as_they_are() -> None:
    text = "山田's résumé 👩‍🔬 \\n %s naïve क्षि"
    assert visible(text) == text
