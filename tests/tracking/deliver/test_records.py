"""Records as lines of JSON: what comes back is what was written, and what is no record is named."""

import math

import pytest

from reprogpt.tracking.deliver.records import (
    Damaged,
    End,
    File,
    Model,
    ModelFile,
    Points,
    Record,
    Results,
    ResultsOf,
    Start,
    Tags,
    TokenFile,
    TrainingRun,
    from_line,
    to_line,
)

TOKENS = TokenFile(name="t", digest="d", path="data/tokens/train.npy", context="training")
RECORDS: list[Record] = [
    TrainingRun(
        name="ü\n", tags={"a": "b"}, params={"seed": 1}, datasets=[TOKENS], store="s", kept_for="checkpoints/a"
    ),
    ResultsOf(run_key="k", experiment=None, store="s", made={"weights.sha256": "w"}),
    Start(name="a"),
    Tags(values={"a": "b"}),
    Points(step=3, values={"loss": 1 / 3, "grad_norm": math.inf}),
    File(kept="a/b", folder="", sampling={"top_k": 9}, tags={"commit": "c"}),
    Results(step=9, values={"final_val_loss": 6.5}),
    ModelFile(kept="a/b", folder="checkpoint"),
    Model(description={"flavors": {"python_function": {}}}),
    End(status="FAILED", adds=None, error="the disk is full"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_a_record_comes_back_as_it_was_written(record: Record) -> None:
    line = to_line(record)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert from_line(line) == record


def test_a_record_has_the_time_when_it_was_made() -> None:
    first, second = Start(name="a"), Start(name="a")
    assert 0 <= second.time - first.time < 10_000
    assert first.time > 1_700_000_000_000  # milliseconds since 1970


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"x", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "valid dictionary"),
        (b"{}", "'kind'"),
        (b'{"kind": "of tomorrow"}', "'of tomorrow'"),
        (b'{"kind": "metrics", "time": 1, "values": {}}', "metrics.step: Field required"),
        (b'{"kind": "tags", "time": 1, "values": {"a": 1}}', "tags.values.a"),
        (b'{"kind": "end", "time": 1, "status": "DONE", "adds": null}', "end.status"),
        (b'{"kind": "start", "name": "a"}', "no time"),
    ],
)
def test_a_line_that_is_no_record_is_damaged_and_says_why(line: bytes, reason: str) -> None:
    damaged = from_line(line)
    assert isinstance(damaged, Damaged) and reason in damaged.reason
