"""The records of an outbox: one class per kind, read from and written as a line of JSON."""

import json
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

Status = Literal["FINISHED", "FAILED", "KILLED"]


def _now() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """time: when the record was made, in milliseconds since 1970."""

    time: int = field(default_factory=_now)


@dataclass(frozen=True)
class TokenFile:
    """An input of the run as an MLflow dataset. digest: DVC's MD5. context: "training" or "validation"."""

    name: str
    digest: str
    path: str
    context: str


@dataclass(frozen=True, kw_only=True)
class TrainingRun(_Timed):
    """First record of a training's outbox: the run to create.

    store: the URI without secrets. kept_for: path below state_dir(); while it exists, the training may be resumed.
    """

    name: str
    tags: dict[str, str]
    params: dict[str, Any]
    datasets: list[TokenFile]
    store: str
    kept_for: str | None = None
    kind: Literal["training"] = "training"


@dataclass(frozen=True, kw_only=True)
class ResultsOf(_Timed):
    """First record of any other outbox: the training whose run the records are for.

    experiment: the DVC experiment that wrote them. made: tags of the run that made the present files.
    training_id: of the training that made them; None if it is not known here.
    """

    run_key: str
    experiment: str | None
    store: str
    made: dict[str, str] = field(default_factory=dict)
    training_id: str | None = None
    kind: Literal["results of"] = "results of"


@dataclass(frozen=True, kw_only=True)
class Start(_Timed):
    """The run is RUNNING, under this name."""

    name: str
    kind: Literal["start"] = "start"


@dataclass(frozen=True, kw_only=True)
class Tags(_Timed):
    """Tags of the run."""

    values: dict[str, str]
    kind: Literal["tags"] = "tags"


@dataclass(frozen=True, kw_only=True)
class Points(_Timed):
    """Metrics of one 0-based step."""

    step: int
    values: dict[str, float]
    kind: Literal["metrics"] = "metrics"


@dataclass(frozen=True, kw_only=True)
class _OfEvaluation(_Timed):
    """sampling: evaluate's parameters; None for what belongs to the training's own run.

    With other parameters than that run has, the record belongs to a child run. tags: of the child run.
    """

    sampling: dict[str, Any] | None = None
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class File(_OfEvaluation):
    """An artifact of the run. kept: as OutboxFile.keep_file returns it. folder: "" for the root."""

    kept: str
    folder: str
    kind: Literal["file"] = "file"


@dataclass(frozen=True, kw_only=True)
class Results(_OfEvaluation):
    """Final metrics, logged at the training's last step."""

    step: int
    values: dict[str, float]
    kind: Literal["results"] = "results"


@dataclass(frozen=True, kw_only=True)
class ModelFile(_Timed):
    """A file of the run's MLflow model; kept and folder as those of File."""

    kept: str
    folder: str
    kind: Literal["model file"] = "model file"


@dataclass(frozen=True, kw_only=True)
class Model(_Timed):
    """All files of the model are queued. description: the contents of MLmodel, except the ids of run and model."""

    description: dict[str, Any]
    kind: Literal["model"] = "model"


@dataclass(frozen=True, kw_only=True)
class End(_Timed):
    """The stage has ended.

    adds: the metric or artifact folder of a stage that adds results; None for a training. error: why it FAILED.
    """

    status: Status
    adds: str | None
    error: str | None = None
    kind: Literal["end"] = "end"


@dataclass(frozen=True)
class Damaged:
    """A line that is no record. reason: what is wrong with it."""

    reason: str
    kind: Literal["damaged line"] = "damaged line"


FirstRecord = TrainingRun | ResultsOf
Record = TrainingRun | ResultsOf | Start | Tags | Points | File | Results | ModelFile | Model | End
_READER: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def to_line(record: Record) -> bytes:
    """The record as a line of JSON, with its newline."""
    return json.dumps(vars(record), default=vars, ensure_ascii=False).encode() + b"\n"


def from_line(line: bytes) -> Record | Damaged:
    """The record in a line; Damaged if there is none, or if this version does not know its kind."""
    try:
        values = json.loads(line)
        record = _READER.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return Damaged(f"{where}: {first['msg']}" if where else first["msg"])
    except ValueError:
        return Damaged("it is not JSON")
    return record if "time" in values else Damaged("it has no time")
