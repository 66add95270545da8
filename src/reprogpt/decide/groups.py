"""Sorts trainings into groups that differ in nothing but the keys in question and the seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from reprogpt import tags
from reprogpt.decide.stored_values import Level, as_seed, canonical, finite_metric, level_order
from reprogpt.params.train import TrainParams
from reprogpt.tracking.log.environment import CPU_TAGS, ENVIRONMENT_TAGS, RARELY_RELEVANT, depends_on_cpu
from reprogpt.tracking.store.tracked_run import TrackedRun

SEED = "seed"
NON_FINITE = "not a finite number"  # what NonFiniteError says
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
    "init_from": (tags.INITIAL_WEIGHTS_SHA256,),
    "init_from_sha256": (tags.INITIAL_WEIGHTS_SHA256,),
}
# These say less than their tags, and some have the name of one: `auto` can be the same as `cpu`.
ONLY_AS_TAGS = frozenset({"device", "matmul", "numerics", "init_from", "init_from_sha256"})
INPUT_TAGS = (
    tags.CORPUS_SHA256,
    tags.INITIAL_WEIGHTS_SHA256,
    *(tag for tag in ENVIRONMENT_TAGS if tag not in RARELY_RELEVANT),
)
COMMIT_TAGS = (tags.COMMIT, tags.DIRTY)  # the code of runs that are older than TRAIN_CODE
# Metrics of the evaluations during training, and the parameters that say when and on what they are made.
PERIODIC_METRICS = frozenset({tags.BEST_VAL_LOSS, "train_loss", "val_loss"})
PERIODIC_KEYS = frozenset({"eval_freq", "eval_iter"})
# Metrics of the evaluate stage, and its parameters that they depend on; the others that it alone reads are of samples.
EVALUATE_METRICS = frozenset(
    {"final_train_loss", "final_val_loss", "val_perplexity", "val_bits_per_byte", "val_accuracy"}
)
EVALUATE_KEYS = ("eval_max_tokens",)

Inputs = dict[str, str]  # name of a parameter, tag or file -> value


@dataclass(frozen=True)
class Observation:
    """The run of one level and seed. value: its metric; None where the training diverged or died."""

    run: TrackedRun
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
    """Runs with equal inputs: of parameters, data, code and environment.

    observations: level -> seed -> the run that counts. pending: level -> seeds without a result yet, whose runs still
    train or are queued. left_out: of this group.
    """

    inputs: Inputs
    observations: dict[Level, dict[int, Observation]] = field(default_factory=dict)
    pending: dict[Level, set[int]] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def levels(self) -> list[Level]:
        """The levels that have runs, in order."""
        return sorted(self.observations, key=level_order)

    @property
    def num_runs(self) -> int:
        """Runs that are compared."""
        return sum(map(len, self.observations.values()))


def own_trainings(runs: Sequence[TrackedRun]) -> tuple[list[TrackedRun], list[TrackedRun]]:
    """The runs of this pipeline's trainings; and the runs that are neither these nor evaluations of them.

    Notebooks and autologging record into the same experiment, with the same names of parameters and metrics.
    """
    trainings = [run for run in runs if tags.RUN_KEY in run.tags and tags.PARENT_RUN_ID not in run.tags]
    ids = {run.id for run in trainings}
    foreign = [run for run in runs if run.id not in ids and run.tags.get(tags.PARENT_RUN_ID) not in ids]
    return trainings, foreign


def training_inputs(run: TrackedRun, keys: Sequence[str], metric: str) -> Inputs:
    """What a training's bits and the metric depend on besides `keys`, the seed and the evaluate stage."""
    left_out = {SEED, *keys} | WATCHING | ONLY_AS_TAGS
    # Where keep or random_order is in question, all of its values must be in one group.
    chooses_weights = run.params.get("keep") == "best" or "keep" in keys
    # In the book's order, evaluations draw from the stream of the training.
    draws_from_stream = run.params.get("random_order") == "book" or "random_order" in keys
    if metric in PERIODIC_METRICS or chooses_weights or draws_from_stream:
        left_out -= PERIODIC_KEYS - set(keys)
    tags_of_keys = {tag for key in keys for tag in RECORDED_AS_TAGS.get(key, ())}
    irrelevant = () if depends_on_cpu(run.tags) else CPU_TAGS
    names = [tag for tag in INPUT_TAGS if tag not in irrelevant]
    names += [tags.TRAIN_CODE] if tags.TRAIN_CODE in run.tags else COMMIT_TAGS
    return (
        _of_params(run, [key for key in TrainParams.model_fields if key not in left_out])
        | {tag: run.tags[tag] for tag in names if tag in run.tags and tag not in tags_of_keys}
        | run.datasets
    )


def _of_params(run: TrackedRun, keys: Iterable[str]) -> Inputs:
    return {key: canonical(key, run.params[key]) for key in keys if key in run.params}


def group_runs(
    runs: Sequence[TrackedRun], keys: Sequence[str], metric: str, queued: Sequence[Mapping[str, object]] = ()
) -> list[Group]:
    """The groups of trainings, that of the newest evaluated run first. runs: own_trainings, newest first.

    queued: the parameters of trainings that have not started.
    Of several runs of one level and seed, one with a value counts before one without, then the newest. A training that
    was never evaluated, such as one that diverged, is in every group of its inputs, however the others were evaluated.
    """
    evaluate_keys = EVALUATE_KEYS if metric in EVALUATE_METRICS else ()
    groups: dict[frozenset[tuple[str, str]], dict[frozenset[tuple[str, str]], Group]] = {}
    measured = {run.id: _of_params(run, evaluate_keys) for run in runs}
    for run in sorted(runs, key=lambda run: not measured[run.id]):
        inputs = training_inputs(run, keys, metric)
        alike = groups.setdefault(frozenset(inputs.items()), {})
        if measured[run.id] or not alike:
            of_run = [alike.setdefault(frozenset(measured[run.id].items()), Group(inputs | measured[run.id]))]
        else:
            of_run = list(alike.values())
        for group in of_run:
            _add(group, run, keys, metric)
    inputs_of_queued = [(params, comparable(params)) for params in queued]
    all_groups = [group for alike in groups.values() for group in alike.values()]
    for group in all_groups:
        of_group = [params for params, inputs in inputs_of_queued if matches(group, inputs)]
        _add_pending(group, [*(run.params for run in group.left_out.running), *of_group], keys)
    return all_groups


def _add(group: Group, run: TrackedRun, keys: Sequence[str], metric: str) -> None:
    seed = as_seed(run.params.get(SEED))
    if seed is None or any(key not in run.params for key in keys):
        group.left_out.without_key.append(run)
        return
    if run.is_running:
        group.left_out.running.append(run)
        return
    has_ended_well = _has_ended_well(run)
    if run.status == "KILLED" and not has_ended_well:
        group.left_out.stopped.append(run)
        return
    has_diverged = NON_FINITE in run.tags.get(tags.ERROR, "")  # perhaps not before evaluate
    if has_ended_well and metric not in run.metrics and not has_diverged:
        group.left_out.without_metric.append(run)
        return
    # The last metric of a training that diverged or died is one of the way there.
    value = finite_metric(run.metrics.get(metric)) if has_ended_well else None
    level = tuple(canonical(key, run.params[key]) for key in keys)
    by_seed = group.observations.setdefault(level, {})
    counted = by_seed.setdefault(seed, Observation(run, value))
    if counted.run is run:
        return
    if counted.value is None and value is not None:
        by_seed[seed] = Observation(run, value)
        group.left_out.repeated.append(counted.run)
    else:
        group.left_out.repeated.append(run)


def _has_ended_well(run: TrackedRun) -> bool:
    """Whether the training reached its last step. FAILED is also a run that the store lacks a record of."""
    return run.status == "FINISHED" or tags.WEIGHTS_SHA256 in run.tags or not EVALUATE_METRICS.isdisjoint(run.metrics)


def _add_pending(group: Group, trainings: Sequence[Mapping[str, object]], keys: Sequence[str]) -> None:
    for params in trainings:
        seed = as_seed(params.get(SEED))
        if seed is None or not all(key in params for key in keys):
            continue
        level = tuple(canonical(key, params[key]) for key in keys)
        if seed not in group.observations.get(level, {}):
            group.pending.setdefault(level, set()).add(seed)


def comparable(params: Mapping[str, object]) -> Inputs:
    """Of params.yaml's values, those that a group's inputs have under the same name."""
    return {key: canonical(key, value) for key, value in params.items() if key not in ONLY_AS_TAGS}


def matches(group: Group, wanted: Inputs) -> bool:
    """Whether every wanted input that the group has is equal to it."""
    return all(group.inputs[key] == value for key, value in wanted.items() if key in group.inputs)


def differing_inputs(group: Group, other: Group) -> dict[str, tuple[str | None, str | None]]:
    """Inputs in which the groups differ: name -> (this group's value, the other's)."""
    names = [*group.inputs, *(name for name in other.inputs if name not in group.inputs)]
    pairs = {name: (group.inputs.get(name), other.inputs.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
