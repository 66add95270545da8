"""What compare finds, on histories a reader can check in the head, and what it concludes."""

import math
from dataclasses import replace
from typing import Any

import pytest

from reprogpt.cli.compare import conclusion, report
from reprogpt.runs.compare import Change, diff_runs, first_divergence
from reprogpt.step_record import STEP_METRICS
from reprogpt.tracking.store.tracked_run import TrackedRun

LATEST = {
    "train_loss": 5.0,
    "val_loss": 6.0,
    "best_val_loss": 5.4,
    "final_val_loss": 5.5,
    "val_perplexity": 244.7,
    "tokens_per_second": 9.0,
}
A = TrackedRun(
    id="a" * 32,
    name="first",
    status="FINISHED",
    params={"seed": "123", "peak_lr": "0.001", "top_k": "25"},
    tags={"commit": "c1", "dirty": "false", "torch": "2", "threads": "2", "run_key": "k", "weights.sha256": "w"},
    metrics=LATEST,
    datasets={"data/tokens/train.npy": "t", "data/tokens/val.npy": "v"},
)
IDENTICAL = ["", "identical to the bit"]


def run_b(**kinds: dict[str, Any]) -> TrackedRun:
    """A second run: A but for the entries given."""
    changed: Any = {kind: {**getattr(A, kind), **entries} for kind, entries in kinds.items()}
    return replace(A, id="b" * 32, name="second", **changed)


def history(num_steps: Any = 6, **values: dict[int, float]) -> dict[str, dict[int, float]]:
    """Metric -> step -> value: every metric is step + 1 at each step, but for the values given."""
    return {key: {step: step + 1.0 for step in range(num_steps)} | values.get(key, {}) for key in STEP_METRICS}


def next_float(value: float) -> float:
    return math.nextafter(value, math.inf)


def test_equal_runs_are_identical_to_the_bit() -> None:
    found = diff_runs(A, run_b(), history(), history())
    assert found.identical
    assert report(found) == IDENTICAL


def test_one_bit_at_step_3_is_found_at_step_3() -> None:
    bit = next_float(4.0)
    found = diff_runs(A, run_b(), history(), history(loss={3: bit}))
    assert found.divergence is not None
    assert (found.divergence.step, found.divergence.changes) == (3, [Change("loss", "4.0", repr(bit))])
    assert not found.identical
    assert "first step that differs: 3" in report(found)
    assert conclusion(found) == "the runs differ"


@pytest.mark.parametrize("key", ["loss", "lr", "max_grad", "max_grad_clipped", "grad_norm"])
def test_each_step_metric_is_compared(key: str) -> None:
    divergence = first_divergence(history(), history(**{key: {2: -1.0}}))
    assert divergence is not None
    assert (divergence.step, [change.key for change in divergence.changes]) == (2, [key])


def test_loss_differences_are_shown_at_powers_of_two_after_the_first_difference_and_at_the_end() -> None:
    other = {step: step + 1.0 + 0.5 * (step - 2) for step in range(3, 30)}
    divergence = first_divergence(history(30), history(30, loss=other, lr={2: 0.0}))
    assert divergence is not None
    assert divergence.loss_differences == [(2, 0.0), (3, 0.5), (4, 1.0), (6, 2.0), (10, 4.0), (18, 8.0), (29, 13.5)]


@pytest.mark.parametrize(("a", "b"), [(6, 4), (4, 6)])
def test_unequal_lengths_differ_and_the_common_steps_are_compared(a: int, b: int) -> None:
    found = diff_runs(A, run_b(), history(a), history(b))
    assert (found.num_steps, found.divergence, found.identical) == ((a, b, 6), None, False)
    assert f"steps recorded: {a} -> {b}; 4 of them in both" in report(found)
    assert conclusion(found) == "the runs differ; the 4 steps that both have are identical to the bit"


def test_loss_differences_of_unequal_lengths_end_at_the_last_common_step() -> None:
    divergence = first_divergence(history(9), history(5, loss={1: 3.0}))
    assert divergence is not None
    assert divergence.loss_differences == [(1, 1.0), (2, 0.0), (3, 0.0), (4, 0.0)]


def test_a_point_that_one_run_lacks_is_a_difference() -> None:
    lacking = history()
    del lacking["lr"][4]
    divergence = first_divergence(history(), lacking)
    assert divergence is not None
    assert (divergence.step, divergence.changes) == (4, [Change("lr", "5.0", None)])


def test_only_the_environment_differs() -> None:
    found = diff_runs(A, run_b(tags={"threads": "4", "commit": "c2"}), history(), history())
    assert found.identical
    assert report(found) == [
        "",
        "code",
        "  commit: c1 -> c2",
        "",
        "environment",
        "  threads: 2 -> 4",
        "",
        "the weights and every recorded step are identical to the bit",
    ]


def test_parameters_that_change_no_bit_still_make_the_runs_differ() -> None:
    found = diff_runs(A, run_b(params={"eval_freq": "1", "top_k": "5"}), history(), history())
    assert found.sections["parameters"] == [Change("eval_freq", None, "1"), Change("top_k", "25", "5")]
    assert not found.identical
    assert conclusion(found) == "the runs differ; the weights and every recorded step are identical to the bit"


def test_sections_come_in_the_order_that_matters() -> None:
    other = run_b(
        tags={"corpus.url": "u", "python": "3", "dirty": "true", "weights.sha256": "x"},
        datasets={"data/tokens/val.npy": "z"},
        params={"top_k": "1", "own": "1", "peak_lr": "0.002"},
        metrics={"val_perplexity": 1.0},
    )
    found = diff_runs(A, other, history(), history(loss={0: 0.0}))
    assert list(found.sections) == ["corpus", "tokens", "parameters", "code", "environment", "results"]
    assert [change.key for change in found.sections["parameters"]] == ["peak_lr", "top_k", "own"]
    titles = [line for line in report(found) if line and not line.startswith(" ")]
    assert [title.split()[0] for title in titles] == [
        *("corpus", "tokens", "parameters", "code", "environment"),
        *("first", "difference", "results", "the"),
    ]


def test_results_are_last_losses_final_numbers_and_weights_and_no_speed() -> None:
    other = run_b(metrics={key: next_float(value) for key, value in LATEST.items()}, tags={"weights.sha256": "x"})
    found = diff_runs(A, other, history(), history())
    keys = [change.key for change in found.sections["results"]]
    assert keys == ["train_loss", "val_loss", "best_val_loss", "final_val_loss", "val_perplexity", "weights.sha256"]
    assert not found.identical and not found.same_weights


def test_another_run_key_of_the_same_inputs_means_other_code() -> None:
    found = diff_runs(A, run_b(tags={"run_key": "l"}), history(), history())
    assert found.sections == {"code": [Change("run_key", "k", "l")]}
    assert found.identical
    with_rate = diff_runs(A, run_b(tags={"run_key": "l"}, params={"peak_lr": "1"}), history(), history())
    assert list(with_rate.sections) == ["parameters"]


def test_runs_without_weights_do_not_have_the_same_weights() -> None:
    tags = {key: value for key, value in A.tags.items() if key != "weights.sha256"}
    killed = replace(A, tags=tags)
    assert "neither run has weights" in conclusion(diff_runs(killed, killed, history(), history()))
    one = diff_runs(A, killed, history(), history())
    assert one.sections == {"results": [Change("weights.sha256", "w", None)]}
    assert not one.same_weights and not one.identical


def test_long_values_get_lines_of_their_own() -> None:
    long = run_b(tags={"weights.sha256": "0" * 64})
    lines = report(diff_runs(A, long, history(), history()))
    assert lines[2:5] == ["  weights.sha256:", "    A  w", "    B  " + "0" * 64]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (1.0, 1.0, True),
        (1.0, math.nextafter(1.0, 2), False),
        (0.0, -0.0, False),
        (math.nan, math.nan, True),
    ],
)
def test_bits_are_compared_not_values(a: float, b: float, same: bool) -> None:
    assert (first_divergence(history(loss={2: a}), history(loss={2: b})) is None) is same
