"""The differences between two runs, and the first step at which their bits differ. Values in, values out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reprogpt import tags
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.train import TrainParams
from reprogpt.step_record import STEP_METRICS
from reprogpt.tracking.log.environment import ENVIRONMENT_TAGS
from reprogpt.tracking.store.tracked_run import TrackedRun

CORPUS = (tags.CORPUS_URL, tags.CORPUS_PATH, tags.CORPUS_SHA256)
START = (tags.INITIAL_WEIGHTS_SHA256,)
CODE = (tags.COMMIT, tags.DIRTY)
MAY_DIFFER = ("code", "environment")  # sections in which runs that are identical to the bit may differ

History = Mapping[str, Mapping[int, float]]  # metric -> step -> value


@dataclass(frozen=True)
class Change:
    """A key with the values of both runs; None where a run has none."""

    key: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class Divergence:
    """The first common step whose bits differ: the metrics that differ, and |loss A - loss B| from there on."""

    step: int
    changes: list[Change]
    loss_differences: list[tuple[int, float]]  # at the step, 1, 2, 4, 8, ... steps later, and at the last common one


@dataclass(frozen=True)
class Comparison:
    """sections: title -> its differences, the most important first; titles without differences are left out.

    num_steps: recorded by A, by B, and by either. has_weights: whether A or B has weights.
    """

    sections: dict[str, list[Change]]
    num_steps: tuple[int, int, int]
    divergence: Divergence | None
    has_weights: bool

    @property
    def same_steps(self) -> bool:
        """Whether both recorded the same steps with the same bits."""
        return self.divergence is None and len(set(self.num_steps)) == 1

    @property
    def same_weights(self) -> bool:
        """Whether both have weights, with the same bits."""
        return self.has_weights and all(
            change.key != tags.WEIGHTS_SHA256 for change in self.sections.get("results", [])
        )

    @property
    def identical(self) -> bool:
        """Whether nothing differs, except perhaps code and environment."""
        return self.same_steps and all(title in MAY_DIFFER for title in self.sections)


def diff_runs(a: TrackedRun, b: TrackedRun, history_a: History, history_b: History) -> Comparison:
    """All differences between two runs and between their recorded steps."""
    evaluate_only = [key for key in EvaluateParams.model_fields if key not in TrainParams.model_fields]
    known = [*TrainParams.model_fields, *evaluate_only]
    sections = {
        "corpus": changes(CORPUS, a.tags, b.tags),
        "tokens": changes(sorted(a.datasets | b.datasets), a.datasets, b.datasets),
        "weights at the start": changes(START, a.tags, b.tags),
        "parameters": changes([*known, *sorted((a.params.keys() | b.params.keys()) - set(known))], a.params, b.params),
        "code": changes(CODE, a.tags, b.tags),
        "environment": changes(ENVIRONMENT_TAGS, a.tags, b.tags),
        "results": _results(a, b),
    }
    if not sections["tokens"] and not any(change.key in TrainParams.model_fields for change in sections["parameters"]):
        # Equal parameters and data: then train's code or pinned packages differ.
        sections["code"] += changes([tags.RUN_KEY], a.tags, b.tags)
    steps_a, steps_b = _steps(history_a), _steps(history_b)
    return Comparison(
        sections={title: section for title, section in sections.items() if section},
        num_steps=(len(steps_a), len(steps_b), len(steps_a | steps_b)),
        divergence=first_divergence(history_a, history_b),
        has_weights=tags.WEIGHTS_SHA256 in a.tags or tags.WEIGHTS_SHA256 in b.tags,
    )


def changes(keys: Iterable[str], a: Mapping[str, str], b: Mapping[str, str]) -> list[Change]:
    """The keys whose values differ between a and b, in the order given."""
    return [Change(key, a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)]


def first_divergence(a: History, b: History) -> Divergence | None:
    """The first common step at which STEP_METRICS differ in their bits; None if there is none."""
    common = sorted(_steps(a) & _steps(b))
    for index, step in enumerate(common):
        differing = changes(STEP_METRICS, _digits(_at_step(a, step)), _digits(_at_step(b, step)))
        if differing:
            return Divergence(step, differing, _loss_differences(common[index:], a.get("loss", {}), b.get("loss", {})))
    return None


def _at_step(history: History, step: int) -> dict[str, float]:
    return {key: values[step] for key, values in history.items() if step in values}


def _digits(values: Mapping[str, float]) -> dict[str, str]:
    """Each value as the shortest decimal that reads back to the same bits.

    So texts are equal where the bits are: unlike ==, NaN equals itself and 0.0 differs from -0.0.
    """
    return {key: repr(value) for key, value in values.items()}


def _loss_differences(steps: list[int], a: Mapping[int, float], b: Mapping[int, float]) -> list[tuple[int, float]]:
    first, last = steps[0], steps[-1]
    shown = [step for step in steps if step == last or (step - first).bit_count() < 2]
    return [(step, abs(a[step] - b[step])) for step in shown if step in a and step in b]


def _results(a: TrackedRun, b: TrackedRun) -> list[Change]:
    """The last and lowest losses, evaluate's metrics and the digest of the weights, where they differ in their bits."""
    final = sorted(key for key in a.metrics | b.metrics if key.startswith(("final_", "val_")) and key != "val_loss")
    keys = ["train_loss", "val_loss", "best_val_loss", *final]
    return changes(keys, _digits(a.metrics), _digits(b.metrics)) + changes([tags.WEIGHTS_SHA256], a.tags, b.tags)


def _steps(history: History) -> set[int]:
    return {step for key in STEP_METRICS for step in history.get(key, {})}
