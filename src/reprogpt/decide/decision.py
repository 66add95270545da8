"""Which value of a parameter is better, from the runs that there are. Values in, values out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations

from reprogpt.decide.groups import (
    EVALUATE_KEYS,
    SEED,
    WATCHING,
    Group,
    Inputs,
    comparable,
    differing_inputs,
    group_runs,
    matches,
    own_trainings,
)
from reprogpt.decide.paired import LevelSummary, PairedComparison, compare_levels, summarize
from reprogpt.decide.sign_test import ALPHA
from reprogpt.decide.stored_values import Level, as_number, canonical
from reprogpt.errors import PipelineError
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.train import TrainParams
from reprogpt.tags import SYSTEM_PREFIX
from reprogpt.tracking.store.tracked_run import TrackedRun

DEFAULT_METRIC = "final_val_loss"
HIGHER_IS_BETTER = frozenset({"val_accuracy", "tokens_per_second"})


@dataclass(frozen=True)
class Question:
    """keys: parameters of train, one or two. against: the baseline; None = the present value in params.yaml.

    where: name -> value that the inputs of the runs have. higher_is_better: of the metric.
    """

    keys: tuple[str, ...]
    metric: str = DEFAULT_METRIC
    against: Level | None = None
    where: Mapping[str, str] | None = None
    higher_is_better: bool = False

    def label(self, level: Level) -> str:
        """peak_lr=0.001, or peak_lr=0.001, warmup_ratio=0.1."""
        return ", ".join(f"{key}={value}" for key, value in zip(self.keys, level, strict=True))


@dataclass(frozen=True)
class Decision:
    """The answer. group: the runs compared; others: other groups with two levels or more, newest first.

    foreign: runs that this pipeline did not train.
    differs_from_present: inputs of the group that params.yaml has otherwise: name -> (the group's, params.yaml's).
    baseline: without a question.against, the level of params.yaml, unless it shares no seed with another: then it is
    skipped_baseline, and the level with the most pairs is the baseline.
    comparisons: of every level but the baseline with it. plateau: the levels that no other is decided to be better
    than; [] if each of them has a better one, as in a circle.
    alpha: the error of each comparison of two levels. All verdicts, intervals and the plateau hold together at ALPHA.
    """

    question: Question
    group: Group
    others: list[Group]
    foreign: list[TrackedRun]
    differs_from_present: dict[str, tuple[str, str]]
    summaries: list[LevelSummary]
    baseline: Level
    skipped_baseline: Level | None
    comparisons: list[PairedComparison]
    plateau: list[Level]
    alpha: float

    @property
    def decided(self) -> bool:
        """Whether each level is decided against the baseline, or is identical to it."""
        return all(comparison.decided or comparison.identical for comparison in self.comparisons)


def make_decision(
    question: Question,
    runs: Sequence[TrackedRun],
    present: Mapping[str, object],
    queued: Sequence[Mapping[str, object]] = (),
) -> Decision:
    """The answer to the question from the runs, newest first. present: params.yaml's values; queued: as in group_runs.

    Raises PipelineError if the question can't be asked: a key that is no parameter of train, no run with the metric,
    a single value, a baseline or a --where that no run has.
    """
    _check_keys(question.keys)
    trainings, foreign = own_trainings(runs)
    _check_metric(question.metric, trainings, len(queued), len(foreign))
    groups = group_runs(trainings, question.keys, question.metric, queued)
    groups = _chosen_by_where(groups, question)
    informative = [group for group in groups if len(group.levels) > 1]
    now = comparable(present)
    if not informative:
        raise _one_value(question, groups, now)
    group = next((group for group in informative if matches(group, now)), informative[0])
    levels = group.levels
    present_level = tuple(canonical(key, present.get(key, "")) for key in question.keys)
    baseline = _baseline(question, group, present_level)
    alpha = ALPHA / math.comb(len(levels), 2)
    return Decision(
        question=question,
        group=group,
        others=[other for other in informative if other is not group],
        foreign=foreign,
        differs_from_present={
            key: (value, now[key]) for key, value in group.inputs.items() if key in now and now[key] != value
        },
        summaries=[summarize(level, group.observations[level]) for level in levels],
        baseline=baseline,
        skipped_baseline=present_level if question.against is None and baseline != present_level in levels else None,
        comparisons=[_compare(question, group, level, baseline, alpha) for level in levels if level != baseline],
        plateau=_plateau(question, group, alpha),
        alpha=alpha,
    )


def num_pairs(a: TrackedRun, b: TrackedRun, runs: Sequence[TrackedRun]) -> tuple[str, int] | None:
    """The one parameter in which two trainings differ, and the number of seeds that both of its values have runs of.

    None if they differ in more, or in nothing.
    """
    if a.params.get(SEED) != b.params.get(SEED):
        return None
    known = [key for key in TrainParams.model_fields if key not in WATCHING and key in a.params and key in b.params]
    keys = [key for key in known if canonical(key, a.params[key]) != canonical(key, b.params[key])]
    if len(keys) != 1:
        return None
    trainings, _ = own_trainings(runs)
    for group in group_runs(trainings, keys, DEFAULT_METRIC):
        by_seed = [group.observations.get((canonical(keys[0], run.params[keys[0]]),), {}) for run in (a, b)]
        ids = {observation.run.id for observations in by_seed for observation in observations.values()}
        if {a.id, b.id} <= ids:
            return keys[0], len(by_seed[0].keys() & by_seed[1].keys())
    return None


def _compare(question: Question, group: Group, level: Level, against: Level, alpha: float) -> PairedComparison:
    higher = question.higher_is_better
    return compare_levels(group.observations, level, against, higher_is_better=higher, alpha=alpha)


def _plateau(question: Question, group: Group, alpha: float) -> list[Level]:
    worse = set()
    for level, other in combinations(group.levels, 2):
        comparison = _compare(question, group, level, other, alpha)
        if comparison.decided:
            worse.add(other if comparison.is_better else level)
    return [level for level in group.levels if level not in worse]


def _check_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if key == SEED:
            raise PipelineError("seed can't be decided: it is what runs are paired by. Name another parameter")
        if key in TrainParams.model_fields:
            continue
        if key in EvaluateParams.model_fields:
            what = "how much of the training text is evaluated" if key in EVALUATE_KEYS else "the samples of evaluate"
            raise PipelineError(f"{key} changes no training: only {what}")
        near = get_close_matches(key, TrainParams.model_fields, n=1)
        raise PipelineError(
            f"{key} is not a parameter of train{f'; did you mean {near[0]}?' if near else ''} "
            "(docs/parameters.md lists them). Seeds don't vary the text, so parameters of the text can't be decided"
        )
    if len(set(keys)) < len(keys):
        raise PipelineError(f"{keys[0]} is named twice")


def _check_metric(metric: str, runs: Sequence[TrackedRun], num_queued: int, num_foreign: int) -> None:
    if any(metric in run.metrics for run in runs):
        return
    if all(run.is_running for run in runs) and len(runs) + num_queued:
        raise PipelineError(
            f"no run has finished yet: {len(runs)} still train, {num_queued} are queued in DVC (dvc queue start). "
            "Ask again when some are done"
        )
    if not runs:
        others = f" ({num_foreign} others in the experiment are not this pipeline's)" if num_foreign else ""
        raise PipelineError(
            f"there are no runs yet{others}. Queue some, for example:\n"
            "dvc exp run --queue -S 'peak_lr=0.0005,0.001' -S 'seed=range(1,7)'\ndvc queue start"
        )
    known = sorted({name for run in runs for name in run.metrics if not name.startswith(SYSTEM_PREFIX)})
    raise PipelineError(f"no run has the metric {metric}. They have: {', '.join(known) or 'none'}")


def _chosen_by_where(groups: list[Group], question: Question) -> list[Group]:
    for name, value in (question.where or {}).items():
        if name in question.keys or name == SEED:
            raise PipelineError(f"--where {name}={value}: it is what is compared; leave it out")
        values = sorted({group.inputs[name] for group in groups if name in group.inputs})
        if not values:
            raise PipelineError(f"--where {name}={value}: no run depends on a parameter, tag or file of that name")
        wanted = canonical(name, value)
        groups = [group for group in groups if group.inputs.get(name) == wanted]
        if not groups:
            raise PipelineError(f"--where {name}={value}: no run has this value. There are: {', '.join(values)}")
    return groups


def _one_value(question: Question, groups: Sequence[Group], now: Inputs) -> PipelineError:
    """The error where no group has two levels."""
    keys = " ".join(question.keys)
    with_runs = [group for group in groups if group.levels]
    if not with_runs:
        return PipelineError(f"no finished run has the metric {question.metric} and the parameter {keys}")
    group = next((group for group in with_runs if matches(group, now)), with_runs[0])
    label = question.label(group.levels[0])
    seeds = ",".join(str(seed) for seed in sorted(group.observations[group.levels[0]])[:10])
    overrides = " ".join(f"-S '{key}=OTHER VALUE'" for key in question.keys)
    problem = (
        f"there is nothing to compare: runs with equal inputs have one value of {keys} only ({label}: "
        f"{len(group.observations[group.levels[0]])} runs){_nearest_pair(with_runs)}."
    )
    others = [question.label(level) for level in group.pending if level != group.levels[0]]
    if others:
        return PipelineError(f"{problem} Runs of {'; '.join(others)} still train or are queued: ask again later")
    return PipelineError(
        f"{problem} Queue another value with the same seeds:\ndvc exp run --queue {overrides} -S 'seed={seeds}'"
    )


def _nearest_pair(groups: Sequence[Group]) -> str:
    """What keeps runs of two values apart, where something does."""
    for other in groups[1:]:
        if other.levels != groups[0].levels:
            names = ", ".join(differing_inputs(groups[0], other))
            return f"; runs of other values differ in {names}, too"
    return ""


def _baseline(question: Question, group: Group, present_level: Level) -> Level:
    levels = group.levels
    if question.against is not None:
        wanted = tuple(canonical(key, value) for key, value in zip(question.keys, question.against, strict=False))
        if wanted not in levels:
            known = "; ".join(", ".join(level) for level in levels)
            raise PipelineError(f"--against {','.join(question.against)}: no run has this value. There are: {known}")
        return wanted
    seeds = {level: group.observations[level].keys() for level in levels}
    num_pairs = {level: sum(len(seeds[level] & seeds[other]) for other in levels if other != level) for level in levels}
    if num_pairs.get(present_level) or not any(num_pairs.values()):
        return present_level if present_level in levels else levels[0]
    return max(levels, key=lambda level: num_pairs[level])


def is_numeric(levels: Sequence[Level]) -> bool:
    """Whether the levels are numbers of a single key."""
    return all(len(level) == 1 and as_number(level[0]) is not None for level in levels)
