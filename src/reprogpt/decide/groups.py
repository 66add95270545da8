"""Sorts runs into groups whose trainings differ in nothing but the keys in question and the seed."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reprogpt.params.train import TrainParams
from reprogpt.runs.compare import CODE
from reprogpt.tracking.log.environment import CPU_TAGS, ENVIRONMENT_TAGS, RARELY_RELEVANT, depends_on_cpu
from reprogpt.tracking.log.provenance import TRAIN_CODE
from reprogpt.tracking.store.tracked_run import TrackedRun

SEED = "seed"
# They decide when and how a training is watched, saved and started, not what it computes.
WATCHING = frozenset(
    {
        "eval_freq",
        "eval_iter",
        "sample_freq",
        "save_seconds",
        "start_context",
        "max_new_tokens",
        "activation_checkpointing",
        "torchrun_args",
    }
)
# Parameters that change these tags.
RECORDED_AS_TAGS = {
    "device": ("device",),
    "matmul": ("matmul",),
    "numerics": ("matmul",),
    "precision": ("matmul",),
    "nproc_per_node": ("num_processes",),
    "init_from": ("started_from_sha256",),
    "init_from_sha256": ("started_from_sha256",),
}
# These say less than their tags, and some have the name of one: `auto` can be the same as `cpu`.
ONLY_AS_TAGS = frozenset({"device", "matmul", "numerics", "init_from", "init_from_sha256"})
# Metrics of the evaluations during training, and the parameters that they depend on besides.
EVALUATION_METRICS = frozenset({"best_val_loss", "train_loss", "val_loss"})
EVALUATION_KEYS = frozenset({"eval_freq", "eval_iter"})
CORPUS = ("corpus.sha256", "started_from_sha256")

Level = tuple[str, ...]  # the values of the keys in question, in canonical form


@dataclass(frozen=True)
class Observation:
    """The run of one level and seed. value: its metric; None where the training diverged or failed."""

    run: TrackedRun
    level: Level
    seed: int
    value: float | None


@dataclass
class LeftOut:
    """Runs that can't be compared, by reason."""

    running: list[TrackedRun] = field(default_factory=list)
    stopped: list[TrackedRun] = field(default_factory=list)
    without_metric: list[TrackedRun] = field(default_factory=list)
    without_key: list[TrackedRun] = field(default_factory=list)
    repeated: list[TrackedRun] = field(default_factory=list)


@dataclass
class Group:
    """Runs with equal inputs. inputs: name -> value, of parameters, data, code and environment.

    observations: level -> seed -> the newest run. pending: level -> seeds without a result yet, whose runs still train
    or are queued. left_out: of this group.
    """

    inputs: dict[str, str]
    observations: dict[Level, dict[int, Observation]] = field(default_factory=dict)
    pending: dict[Level, set[int]] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def levels(self) -> list[Level]:
        """The levels that have runs: numbers in ascending order, then texts."""
        return sorted(self.observations, key=_order)

    @property
    def num_runs(self) -> int:
        """Runs that are compared."""
        return sum(map(len, self.observations.values()))


def canonical(value: object) -> str:
    """A parameter's value in the one form of it: 5e-4 and 0.0005, True and true, None and null are equal."""
    text = str(value)
    if text in ("True", "False"):
        return text.lower()
    if text in ("None", ""):
        return "null" if text else '""'
    number = as_number(text)
    if number is None:
        return text
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def as_number(text: str) -> float | None:
    """The finite number that the text writes; None if it writes none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def training_inputs(run: TrackedRun, keys: Sequence[str], metric: str) -> dict[str, str]:
    """What a training's bits and the metric depend on besides `keys` and the seed: parameters, data, code, machine."""
    left_out = {SEED, *keys}
    # The evaluations choose the weights of keep: best; where keep is in question, for one of its values.
    chosen_by_evaluations = run.params.get("keep") == "best" or "keep" in keys
    if metric not in EVALUATION_METRICS and not chosen_by_evaluations:
        left_out |= EVALUATION_KEYS
    left_out |= WATCHING - EVALUATION_KEYS
    tags_of_keys = {tag for key in keys for tag in RECORDED_AS_TAGS.get(key, ())}
    left_out |= ONLY_AS_TAGS
    params = {key: canonical(run.params[key]) for key in TrainParams.model_fields if key in run.params}
    code = (TRAIN_CODE,) if TRAIN_CODE in run.tags else CODE
    irrelevant = RARELY_RELEVANT if depends_on_cpu(run.tags) else (*RARELY_RELEVANT, *CPU_TAGS)
    tags = [*CORPUS, *code, *(tag for tag in ENVIRONMENT_TAGS if tag not in irrelevant)]
    return (
        {key: value for key, value in params.items() if key not in left_out}
        | {tag: run.tags[tag] for tag in tags if tag in run.tags and tag not in tags_of_keys}
        | run.datasets
    )


def group_runs(
    runs: Sequence[TrackedRun], keys: Sequence[str], metric: str, queued: Sequence[Mapping[str, object]] = ()
) -> list[Group]:
    """The groups of trainings, that of the newest run first. runs: newest first, without evaluations of other runs.

    queued: the parameters of trainings that have not started.
    Of several runs of one level and seed, one that finished counts before one that failed, the newest first.
    """
    groups: dict[tuple[tuple[str, str], ...], Group] = {}
    for run in runs:
        inputs = training_inputs(run, keys, metric)
        group = groups.setdefault(tuple(sorted(inputs.items())), Group(inputs))
        _add(group, run, keys, metric)
    inputs_of_queued = [(params, comparable(params)) for params in queued]
    for group in groups.values():
        of_group = [params for params, inputs in inputs_of_queued if matches(group, inputs)]
        _add_pending(group, [*(run.params for run in group.left_out.running), *of_group], keys)
    return list(groups.values())


def _add(group: Group, run: TrackedRun, keys: Sequence[str], metric: str) -> None:
    if any(key not in run.params for key in (*keys, SEED)):
        group.left_out.without_key.append(run)
        return
    if run.is_running:
        group.left_out.running.append(run)
        return
    if run.status == "KILLED":
        group.left_out.stopped.append(run)
        return
    value = run.metrics.get(metric)
    if run.status == "FINISHED" and value is None:
        group.left_out.without_metric.append(run)
        return
    if run.status == "FAILED" or value is None or not math.isfinite(value):
        value = None
    level = tuple(canonical(run.params[key]) for key in keys)
    by_seed = group.observations.setdefault(level, {})
    seed = int(run.params[SEED])
    other = by_seed.get(seed)
    if other is None or (other.run.status == "FAILED" and run.status == "FINISHED"):
        by_seed[seed] = Observation(run, level, seed, value)
    if other is not None:
        group.left_out.repeated.append(other.run if by_seed[seed] is not other else run)


def _add_pending(group: Group, trainings: Sequence[Mapping[str, object]], keys: Sequence[str]) -> None:
    for params in trainings:
        seed = as_number(str(params.get(SEED)))
        if seed is None or not all(key in params for key in keys):
            continue
        level = tuple(canonical(params[key]) for key in keys)
        if seed not in group.observations.get(level, {}):
            group.pending.setdefault(level, set()).add(int(seed))


def comparable(params: Mapping[str, object]) -> dict[str, str]:
    """Of params.yaml's values, those that a group's inputs have in the same words."""
    return {key: canonical(value) for key, value in params.items() if key not in ONLY_AS_TAGS}


def matches(group: Group, wanted: Mapping[str, str]) -> bool:
    """Whether every wanted input that the group has is equal to it."""
    return all(group.inputs[key] == canonical(value) for key, value in wanted.items() if key in group.inputs)


def differing_inputs(group: Group, other: Group) -> dict[str, tuple[str | None, str | None]]:
    """Inputs in which the groups differ: name -> (this group's value, the other's)."""
    names = [*group.inputs, *(name for name in other.inputs if name not in group.inputs)]
    pairs = {name: (group.inputs.get(name), other.inputs.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def varying_params(runs: Sequence[TrackedRun]) -> list[str]:
    """Training parameters that have several values among the runs, those with the most values first."""
    counts = Counter(
        {
            key: len({canonical(run.params[key]) for run in runs if key in run.params})
            for key in TrainParams.model_fields
            if key != SEED and key not in WATCHING
        }
    )
    return [key for key, count in counts.most_common() if count > 1]


def _order(level: Level) -> tuple[tuple[bool, float, str], ...]:
    numbers = [as_number(value) for value in level]
    return tuple((number is None, number or 0.0, value) for number, value in zip(numbers, level, strict=True))
