"""Which runs are compared, what is concluded from them, and what is said."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from reprogpt.cli.compare import seeds_hint
from reprogpt.cli.decide_report import report, verdicts
from reprogpt.decide.decision import Decision, Question, make_decision
from reprogpt.decide.groups import (
    EVALUATE_KEYS,
    EVALUATE_METRICS,
    PERIODIC_KEYS,
    RECORDED_AS_TAGS,
    WATCHING,
)
from reprogpt.decide.sign_test import ALPHA
from reprogpt.errors import NonFiniteError, PipelineError
from reprogpt.evaluation.losses import require_finite
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.train import TrainParams
from reprogpt.paths import EVAL_RESULTS
from reprogpt.tags import ERROR, RUN_KEY, WEIGHTS_SHA256
from reprogpt.tracking.log.environment import ENVIRONMENT_TAGS
from reprogpt.tracking.store.tracked_run import TrackedRun

ROOT = Path(__file__).resolve().parents[2]
PRESENT = {
    "device": "auto",
    "matmul": "auto",
    "peak_lr": 0.0005,
    "warmup_ratio": 0.2,
    "n_epochs": 15,
    "orig_book_version": False,
    "eval_freq": 5,
    "eval_max_tokens": 0,
}
VALUES = {1: 6.41, 2: 6.52, 3: 6.47, 4: 6.44, 5: 6.5, 6: 6.48}  # seed -> final_val_loss
LR = Question(("peak_lr",))
_ids = iter(range(1 << 30))


def run(
    seed: int = 1, value: float | None = None, status: str = "FINISHED", tags: Any = None, **params: Any
) -> TrackedRun:
    """A run as train and evaluate record it."""
    number = next(_ids)
    return TrackedRun(
        id=f"{number:032x}",
        name=f"run-{number}",
        status=status,
        params={key: str(value) for key, value in (PRESENT | {"seed": seed} | params).items()},
        tags={"device": "cpu", "matmul": "torch", "train_code": "c", "torch": "2", RUN_KEY: f"{number:032x}"}
        | ({WEIGHTS_SHA256: f"w{number}"} if status == "FINISHED" else {})
        | (tags or {}),
        metrics={} if value is None else {"final_val_loss": value},
        datasets={"data/tokens/train.npy": "t"},
    )


NOISE = (0, 0.01, -0.01, 0.005, 0, -0.005)
OTHER_NOISE = (0.01, -0.01, 0, 0.01, -0.01, 0)


def seeds(change: float = 0.0, noise: Sequence[float] = NOISE, **params: Any) -> list[TrackedRun]:
    """Runs of six seeds, each `change` plus some noise above VALUES."""
    return [run(seed, VALUES[seed] + change + noise[seed - 1], **params) for seed in VALUES]


def decided(
    runs: Sequence[TrackedRun], question: Question = LR, present: Any = None, queued: Sequence[Any] = ()
) -> Decision:
    return make_decision(question, runs, present or PRESENT, queued)


def test_a_difference_that_all_pairs_share_is_decided() -> None:
    decision = decided(seeds() + seeds(-0.2, OTHER_NOISE, peak_lr=0.001))
    assert decision.decided
    assert decision.baseline == ("0.0005",)
    assert verdicts(decision) == [
        "peak_lr=0.001 is better than 0.0005 for the typical seed, in 6 of 6 pairs, by 0.1950 nats (0.1900 to 0.2200), "
        "on this text",
        "6 pairs can't exclude a failure or spike in up to 3 of 6 seeds (50 %)",
    ]
    (comparison,) = decision.comparisons
    assert comparison.interval == pytest.approx((-0.22, -0.19))
    assert comparison.correlation == pytest.approx(0.985, abs=0.001)
    assert comparison.variance_ratio > 5


def test_the_other_way_round_it_is_worse() -> None:
    runs = seeds() + seeds(-0.2, OTHER_NOISE, peak_lr=0.001)
    verdict, _ = verdicts(decided(runs, Question(("peak_lr",), against=("1e-3",))))
    assert verdict.startswith(
        "peak_lr=0.0005 is worse than 0.001 for the typical seed, in 6 of 6 pairs, by 0.1950 nats"
    )


def test_where_higher_is_better_the_sign_is_turned() -> None:
    runs = seeds() + seeds(-0.2, OTHER_NOISE, peak_lr=0.001)
    verdict, _ = verdicts(decided(runs, Question(("peak_lr",), higher_is_better=True)))
    assert verdict.startswith("peak_lr=0.001 is worse than 0.0005 for the typical seed")


def test_noise_is_undecided_and_the_missing_runs_are_queued() -> None:
    decision = decided(seeds() + seeds(-0.04, (0.05, -0.04, 0.02, -0.05, 0.02, -0.02), peak_lr=0.001))
    assert not decision.decided
    lines = report(decision)
    (verdict,) = [line for line in lines if "undecided" in line]
    assert "undecided by the sign test: better in 5 of 6 pairs; about 14 more would settle it at this share" in verdict
    assert lines[-2:] == ["dvc exp run --queue -S 'peak_lr=0.0005,0.001' -S 'seed=range(7,21)'", "dvc queue start"]


def test_fewer_than_six_pairs_are_never_decided() -> None:
    runs = [one for one in seeds() + seeds(-1, (0,) * 6, peak_lr=0.001) if one.params["seed"] in "12345"]
    lines = report(decided(runs))
    verdict = (
        "peak_lr=0.001 against 0.0005: undecided by the sign test: better in 5 of 5 pairs; fewer than 6 never decide"
    )
    assert verdict in lines
    assert "dvc exp run --queue -S 'peak_lr=0.0005,0.001' -S 'seed=6'" in lines


def test_only_the_missing_combinations_are_queued() -> None:
    runs = [run(seed, 6 + seed / 10) for seed in range(1, 7)] + [run(1, 5.9, peak_lr=0.001)]
    lines = report(decided(runs))
    assert "dvc exp run --queue -S 'peak_lr=0.001' -S 'seed=range(2,7)'" in lines
    runs.append(run(8, 5.9, peak_lr=0.001))
    runs.pop(5)
    lines = report(decided(runs))
    assert "dvc exp run --queue -S 'peak_lr=0.001' -S 'seed=range(2,6)'" in lines
    assert "dvc exp run --queue -S 'peak_lr=0.0005' -S 'seed=8'" in lines


def test_runs_that_train_or_are_queued_are_not_queued_again() -> None:
    runs = [run(seed, 6 + seed / 10) for seed in range(1, 6)] + [run(seed, 5.9, peak_lr=0.001) for seed in range(1, 5)]
    runs += [run(5, status="RUNNING", peak_lr=0.001)]
    queued: list[dict[str, Any]] = [PRESENT | {"seed": 6, "peak_lr": 1e-3}]
    queued += [PRESENT | {"seed": 6, "n_epochs": 2}, {"seed": 6}, PRESENT | {"seed": "six"}]  # none of these runs
    lines = report(decided(runs, queued=queued))
    assert lines[-2:] == ["dvc exp run --queue -S 'peak_lr=0.0005' -S 'seed=6'", "dvc queue start"]
    lines = report(decided(runs, queued=[*queued, PRESENT | {"seed": 6}]))
    assert lines[-1] == "the runs that this takes still train or are queued: decide again when they are done"
    assert not any(line.startswith("dvc") for line in lines)


@pytest.mark.parametrize("where", ["training", "queued"])
def test_values_without_a_finished_run_are_waited_for(where: str) -> None:
    runs, queued = [run(1, 6.0)], [PRESENT | {"seed": 1, "peak_lr": 0.001}]
    if where == "training":
        runs, queued = [run(1, status="RUNNING", peak_lr=0.001), *runs], []
    with pytest.raises(PipelineError, match=r"Runs of peak_lr=0\.001 still train or are queued: ask again later"):
        decided(runs, queued=queued)
    with pytest.raises(PipelineError, match=r"no run has finished yet: \d still train, \d are queued"):
        decided(runs[:-1], queued=queued)


def test_without_a_common_seed_it_says_so() -> None:
    lines = report(decided([run(1, 6.0), run(2, 6.1), run(3, 5.9, peak_lr=0.001)]))
    assert "peak_lr=0.001 against 0.0005: undecided: no seed has runs of both" in lines
    assert any(line.startswith("dvc exp run --queue") for line in lines)


def test_values_are_equal_however_they_are_written() -> None:
    decision = decided(seeds(peak_lr="5e-4") + seeds(-1, peak_lr="0.001")[:3] + seeds(-1, peak_lr="1e-3")[3:])
    assert decision.group.levels == [("0.0005",), ("0.001",)]
    assert decision.comparisons[0].num_pairs == 6


@pytest.mark.parametrize(
    ("key", "values", "against"),
    [
        ("orig_book_version", (False, True), "TRUE"),
        ("peak_lr", (0.0005, 0.001), "1e-3"),
        ("max_norm", (1.0, None), "null"),
        ("lr_decay", ("cosine", "none"), "none"),
    ],
)
def test_a_baseline_is_compared_as_its_parameter_s_type(key: str, values: tuple[Any, Any], against: str) -> None:
    first, second = values
    runs = seeds(**{key: first}) + seeds(-1, **{key: second})
    decision = decided(runs, Question((key,), against=(against,)), PRESENT | {key: first})
    assert decision.group.observations[decision.baseline][1].run.params[key] == str(second)


@pytest.mark.parametrize(
    "change",
    [
        {"n_epochs": 10},
        {"tags": {"train_code": "other"}},
        {"tags": {"device": "cuda"}},
        {"tags": {"corpus.sha256": "other"}},
        {"tags": {"started_from_sha256": "other"}},
    ],
)
def test_runs_with_other_inputs_are_another_group(change: Any) -> None:
    runs = seeds(-3, **change)[:5] + seeds(-2, peak_lr=0.001, **change) + seeds() + seeds(-0.1, peak_lr=0.001)
    decision = decided(runs)
    lines = report(decision)
    if "n_epochs" in change:
        assert decision.group.num_runs == 12
        assert "another group: 11 runs, --where n_epochs=10" in lines
        (name, value) = ("n_epochs", "10")
    else:  # equal parameters: the newest, which are the first
        assert decision.group.num_runs == 11
        (name, value) = next(iter(change["tags"].items()))
    chosen = decided(runs, Question(("peak_lr",), where={name: value}))
    assert chosen.group.num_runs == 11


@pytest.mark.parametrize("key", sorted(WATCHING))
def test_watching_keys_don_t_matter(key: str) -> None:
    assert key in TrainParams.model_fields
    values: tuple[Any, ...] = ({key: 7}, {key: 8}, {key: 9})
    first, second, third = values
    runs = seeds(0, **first)[:2] + seeds(0, **second)[2:] + seeds(-0.1, **third, peak_lr=0.001)
    assert decided(runs).comparisons[0].num_pairs == 6


@pytest.mark.parametrize("key", sorted(PERIODIC_KEYS))
def test_in_the_book_s_order_evaluations_move_the_stream_of_the_training(key: str) -> None:
    one: dict[str, Any] = {key: 5}
    other: dict[str, Any] = {key: 7}
    runs = seeds(random_order="book", **one) + seeds(random_order="book", peak_lr=0.001, **other)
    with pytest.raises(PipelineError, match=f"differ in {key}"):
        decided(runs)
    runs = seeds(random_order="book", **one) + seeds(random_order="independent", **other)
    with pytest.raises(PipelineError, match=f"differ in {key}"):
        decided(runs, Question(("random_order",)))


def test_the_metrics_of_evaluations_during_training_depend_on_when_they_are_made() -> None:
    runs = seeds() + seeds(peak_lr=0.001, eval_freq=7)
    for one in runs:
        one.metrics["best_val_loss"] = one.metrics["final_val_loss"]
    assert decided(runs).comparisons
    with pytest.raises(PipelineError, match="differ in eval_freq"):
        decided(runs, Question(("peak_lr",), "best_val_loss"))


def test_where_keep_is_in_question_the_evaluations_matter_to_both_values() -> None:
    """They choose the weights of keep: best only, but both values must be in one group."""
    runs = seeds(keep="last") + seeds(0.2, keep="best")
    decision = decided(runs, Question(("keep",)), {"keep": "last"})
    assert decision.group.levels == [("best",), ("last",)]
    with pytest.raises(PipelineError, match="differ in eval_freq"):
        decided(seeds(keep="last") + seeds(0.2, keep="best", eval_freq=7), Question(("keep",)))


@pytest.mark.parametrize("metric", sorted(EVALUATE_METRICS))
def test_metrics_of_evaluate_depend_on_the_tokens_that_it_reads(metric: str) -> None:
    runs = seeds() + seeds(-0.1, peak_lr=0.001, eval_max_tokens=1000)
    for one in runs:
        one.metrics[metric] = one.metrics["best_val_loss"] = one.metrics["final_val_loss"]
    with pytest.raises(PipelineError, match="differ in eval_max_tokens"):
        decided(runs, Question(("peak_lr",), metric))
    assert decided(runs, Question(("peak_lr",), "best_val_loss")).comparisons
    runs += [run(seed, status="FAILED", peak_lr=0.1) for seed in VALUES]  # never evaluated: of both groups
    for one in runs[-6:]:
        del one.params["eval_max_tokens"]
    decision = decided(runs, Question(("peak_lr",), metric))
    assert decision.group.inputs["eval_max_tokens"] == "0"
    assert decision.comparisons[0].signs == (0, 6)
    decision = decided(runs, Question(("peak_lr",), metric, where={"eval_max_tokens": "1000"}))
    assert decision.group.levels == [("0.001",), ("0.1",)]


def test_names_of_keys_and_tags_exist() -> None:
    assert set(RECORDED_AS_TAGS) <= set(TrainParams.model_fields)
    assert {tag for tags in RECORDED_AS_TAGS.values() for tag in tags} <= {*ENVIRONMENT_TAGS, "started_from_sha256"}
    assert set(EVALUATE_KEYS) <= set(EvaluateParams.model_fields) - set(TrainParams.model_fields)
    assert set(json.loads((ROOT / EVAL_RESULTS).read_text("utf-8"))) == EVALUATE_METRICS  # of the default training


def test_what_is_recorded_as_a_tag_doesn_t_part_the_values_of_its_key() -> None:
    runs = seeds(precision="fp32", tags={"matmul": "onednn"}) + seeds(precision="bf16", tags={"matmul": "torch"})
    assert len(decided(runs, Question(("precision",))).group.levels) == 2
    runs = seeds(init_from="") + seeds(init_from="a", tags={"started_from_sha256": "s"})
    assert len(decided(runs, Question(("init_from",))).group.levels) == 2


@pytest.mark.parametrize("matmul", ["torch", "portable"])
def test_runs_of_two_machines_are_paired_only_if_their_bits_do_not_depend_on_the_processor(matmul: str) -> None:
    tags = {"matmul": matmul, "instruction_set": "AVX2"}
    runs = seeds(tags=tags | {"cpu_vendor": "AuthenticAMD"}, numerics="auto")
    runs += seeds(-0.1, tags=tags | {"cpu_vendor": "GenuineIntel"}, numerics="portable", peak_lr=0.001)
    if matmul == "portable":
        assert decided(runs).group.num_runs == 12
    else:
        with pytest.raises(PipelineError, match="differ in cpu_vendor"):
            decided(runs)


def test_runs_that_can_t_be_compared_are_left_out_and_named() -> None:
    training = run(1, 6.41)
    runs = [
        run(7, status="RUNNING"),
        run(7, status="KILLED"),
        run(8),
        run(1, 9.0, tags={"mlflow.parentRunId": training.id}),
        *seeds(),
        *seeds(-0.1, peak_lr=0.001),
        training,
    ]
    decision = decided(runs)
    assert decision.group.num_runs == 12
    lines = report(decision)
    assert f"left out: 1 still training ({runs[0].name})" in lines
    assert "left out: 1 stopped before the end" in lines
    assert "left out: 1 without final_val_loss (evaluate has not run, or failed)" in lines
    assert "left out: 1 repeating a value and seed" in lines
    assert sum(line.startswith("left out") for line in lines) == 4


def foreign_run(seed: object, value: float, **params: Any) -> TrackedRun:
    """Of a notebook that records the same names, and nothing else."""
    values = {key: str(value) for key, value in ({"peak_lr": 0.0005, "seed": seed} | params).items()}
    return TrackedRun(f"{next(_ids):032x}", "notebook", "FINISHED", values, metrics={"final_val_loss": value})


def test_runs_that_this_pipeline_did_not_train_are_left_out_and_listed() -> None:
    own = seeds() + seeds(0.2, OTHER_NOISE, peak_lr=0.001)
    foreign = [foreign_run(seed, 6.0) for seed in VALUES] + [foreign_run(seed, 5.5, peak_lr=0.001) for seed in VALUES]
    foreign += [foreign_run("None", 5.0), foreign_run("42.5", 5.0, peak_lr=0.001)]
    decision = decided(foreign + own)
    assert verdicts(decision) == verdicts(decided(own))
    reason = "not trained by this pipeline, which gives each run a run_key"
    names = ", ".join(["notebook"] * 5)
    assert f"left out: 14 {reason} ({names}, ...)" in report(decision)
    assert seeds_hint(own[0], own[6], foreign + own) == ["one seed each; `reprogpt decide peak_lr` has 6 pairs"]
    with pytest.raises(PipelineError, match=r"no runs yet \(14 others in the experiment are not this pipeline's\)"):
        decided(foreign)


@pytest.mark.parametrize("seed", ["None", "42.5", "", "-1", "1e3", "9" * 5000])
def test_a_seed_that_is_no_whole_number_is_left_out(seed: str) -> None:
    foreign = run(1, 5.0)
    foreign.params["seed"] = seed
    runs = [foreign, *seeds(), *seeds(-0.1, peak_lr=0.001)]
    decision = decided(runs)
    assert decision.group.num_runs == 12
    assert "left out: 1 without peak_lr or seed" in report(decision)


def test_a_repeat_counts_once_and_a_failure_gives_way_to_a_finished_run() -> None:
    runs = [run(1, status="FAILED", peak_lr=0.001), *seeds(), *seeds(-0.1, peak_lr=0.001), run(1, 99.0)]
    summary, other = decided(runs).summaries
    assert (summary.num_seeds, summary.num_failed) == (6, 0)
    assert (other.num_seeds, other.num_failed) == (6, 0)
    assert summary.values[1] == pytest.approx(VALUES[1])


# MLflow's tables hold the largest float in place of inf.
DIVERGED: list[dict[str, Any]] = [{"value": math.nan}, {"value": math.inf}, {"value": 1.7976931348623157e308}]
DIED: list[dict[str, Any]] = [{"value": None, "status": "FAILED"}]


@pytest.mark.parametrize("how", DIVERGED + DIED)
def test_diverged_and_failed_runs_count_as_the_worst(how: Any) -> None:
    runs = seeds() + [run(seed, peak_lr=0.1, **how) for seed in VALUES]
    decision = decided(runs)
    assert decision.plateau == [("0.0005",)]
    (comparison,) = decision.comparisons
    assert comparison.signs == (0, 6)
    assert comparison.interval == (math.inf, math.inf)
    verdict, _ = verdicts(decision)
    assert verdict == "peak_lr=0.1 is worse than 0.0005 for the typical seed, in 6 of 6 pairs, on this text"
    assert not any("inf" in line for line in report(decision, needs=0.1))


def test_a_training_that_died_does_not_count_by_a_metric_of_the_way_there() -> None:
    runs = seeds() + [run(seed, status="FAILED", peak_lr=0.1) for seed in VALUES]
    for one in runs:
        one.metrics["best_val_loss"] = 6.0 if one.status == "FAILED" else 6.4
    assert decided(runs, Question(("peak_lr",), "best_val_loss")).comparisons[0].signs == (0, 6)


def test_a_run_that_lost_only_its_record_counts_by_its_loss() -> None:
    """As on a full disk, or where a proxy refuses a large file (413): MLflow has it as FAILED."""
    lost = run(1, VALUES[1] - 0.2, status="FAILED", tags={WEIGHTS_SHA256: "w"}, peak_lr=0.001)
    lost.metrics["best_val_loss"] = 6.0
    runs = [*seeds(), lost, *seeds(-0.2, OTHER_NOISE, peak_lr=0.001)[1:]]
    assert decided(runs).comparisons[0].signs == (6, 0)
    for one in runs:
        one.metrics["best_val_loss"] = one.metrics["final_val_loss"]
    assert decided(runs, Question(("peak_lr",), "best_val_loss")).comparisons[0].signs == (6, 0)
    del lost.tags[WEIGHTS_SHA256]  # its record was lost, too; the evaluation proves that there were weights
    assert decided(runs).comparisons[0].signs == (6, 0)


def test_a_run_whose_evaluation_is_missing_is_left_out_unless_its_losses_are_not_finite() -> None:
    with pytest.raises(NonFiniteError) as raised:
        require_finite({"final_val_loss": math.nan}, "evaluation of the final weights")
    runs = seeds() + seeds(-0.2, OTHER_NOISE, peak_lr=0.001)[1:]
    without = run(1, status="FAILED", tags={WEIGHTS_SHA256: "w", ERROR: "No space left on device"}, peak_lr=0.001)
    assert decided([*runs, without]).group.left_out.without_metric == [without]
    diverged = run(1, status="FAILED", tags={WEIGHTS_SHA256: "w", ERROR: str(raised.value)}, peak_lr=0.001)
    assert decided([*runs, diverged]).comparisons[0].signs == (5, 1)


def test_equal_bits_are_called_identical() -> None:
    """As with eval_freq, which changes no weights: the difference is exactly 0."""
    runs = [
        run(seed, VALUES[seed], eval_freq=value, tags={WEIGHTS_SHA256: f"w{seed}"})
        for value in (5, 1)
        for seed in (1, 2, 3)
    ]
    decision = decided(runs, Question(("eval_freq",)))
    assert decision.decided
    identical = "eval_freq=1 and 5 are identical to the bit in 3 pairs: it makes no difference here"
    assert verdicts(decision) == [identical]


def test_a_metric_that_is_equal_in_all_pairs_asks_for_no_more_runs() -> None:
    decision = decided(seeds() + seeds(peak_lr=0.001))
    assert not decision.decided
    lines = report(decision, needs=0.1)
    equal = "undecided: final_val_loss is equal in 6 pairs; more would not tell them apart"
    assert f"peak_lr=0.001 against 0.0005: {equal}" in lines
    assert not any(line.startswith("dvc") for line in lines)
    failed = [run(seed, status="FAILED", peak_lr=value) for seed in VALUES for value in (0.1, 1.0)]
    decision = decided([*failed, run(9, 6.0)], Question(("peak_lr",), against=("0.1",)))
    assert any(line.startswith("peak_lr=1 against 0.1: undecided: both runs failed in 6") for line in report(decision))


def test_the_present_params_choose_the_group() -> None:
    runs = seeds(n_epochs=3) + seeds(-0.1, peak_lr=0.001, n_epochs=3)[:5] + seeds() + seeds(-0.1, peak_lr=0.001)
    assert decided(runs).group.inputs["n_epochs"] == "15"
    assert decided(runs).differs_from_present == {}
    assert decided(runs, present=PRESENT | {"n_epochs": 3}).group.inputs["n_epochs"] == "3"
    other = decided(runs, present=PRESENT | {"n_epochs": 99})
    assert other.differs_from_present == {"n_epochs": ("3", "99")}
    lines = report(other)
    assert "not those of params.yaml, which has no runs of two values: n_epochs=3 (there 99)" in lines
    assert any("-S 'n_epochs=3'" in line for line in lines if line.startswith("dvc exp run"))


def values_of(*changes: tuple[float, float], num_seeds: int = 14) -> list[TrackedRun]:
    """Runs of num_seeds seeds: (peak_lr, what it adds to the loss), with a little noise."""
    return [
        run(seed, 6 + seed / 10 + change + (seed * 7919 % 13 - 6) / 1000 * lr, peak_lr=lr)
        for lr, change in changes
        for seed in range(1, num_seeds + 1)
    ]


def test_several_values_have_a_plateau_and_hold_together() -> None:
    decision = decided(values_of((0.0001, 0.5), (0.0005, 0.0), (0.001, -0.2), (0.002, -0.2)))
    assert decision.plateau == [("0.001",), ("0.002",)]
    assert decision.alpha == ALPHA / 6
    lines = report(decision)
    plateau = "plateau: peak_lr from 0.001 to 0.002: none of them is decided to be worse than another value"
    assert plateau in lines
    assert "4 values make 6 comparisons: verdicts, intervals and plateau hold together at 95 %" in lines


def test_a_value_that_is_decided_to_be_better_is_on_the_plateau_though_a_run_of_it_failed() -> None:
    runs = values_of((0.0001, 0.5), (0.0005, 0.0), (0.001, -0.1))
    failed = next(one for one in runs if one.params["peak_lr"] == "0.001")
    runs[runs.index(failed)] = run(int(failed.params["seed"]), status="FAILED", peak_lr=0.001)
    lines = verdicts(decided(runs))
    assert "peak_lr=0.001 is better than 0.0005 for the typical seed, in 13 of 14 pairs, by 0.1" in lines[1]
    assert "plateau: peak_lr 0.001: every other value is decided to be worse than another" in lines


def test_the_plateau_compares_common_seeds_only() -> None:
    """Three lucky seeds of the baseline, which the others lack, make its mean the lowest."""
    runs = values_of((0.0001, 0.5), (0.0005, 0.0), (0.001, -0.1), num_seeds=8)
    runs += [run(seed, 3.0) for seed in (21, 22, 23)]
    decision = decided(runs)
    assert decision.plateau == [("0.001",)]
    (row,) = [line.split() for line in report(decision) if line.split()[:1] == ["0.001"]]
    assert row[1:7] == ["8", "0", "8", "6.3500", "0.2449", "6.4500"]  # means of the same eight seeds


@pytest.mark.parametrize("signs", [(5, 2), (6, 1), (7, 0), (8, 0), (9, 1)])
def test_an_interval_excludes_0_if_and_only_if_the_verdict_is_decided(signs: tuple[int, int]) -> None:
    """With three values, too, whose verdicts have to hold together."""
    num_better, num_worse = signs
    runs = [run(seed, 6.0, peak_lr=lr) for seed in range(1, 11) for lr in (0.0005, 0.002)]
    changes = [-0.1] * num_better + [0.1] * num_worse
    runs += [run(seed, 6.0 + change, peak_lr=0.001) for seed, change in enumerate(changes, 1)]
    comparison = decided(runs).comparisons[0]
    low, high = comparison.interval
    assert comparison.decided == (low > 0 or high < 0) == (signs in [(8, 0)])


def test_two_keys_make_a_value_of_each_combination() -> None:
    runs = [run(seed, 6.0 + seed / 10) for seed in range(1, 9)]
    runs += [run(seed, 5.9 + seed / 10, peak_lr=0.001) for seed in range(1, 9)]
    runs += [run(seed, 5.7 + seed / 10, peak_lr=0.001, warmup_ratio=0.1) for seed in range(1, 9)]
    decision = decided(runs, Question(("peak_lr", "warmup_ratio")))
    assert decision.group.levels == [("0.0005", "0.2"), ("0.001", "0.1"), ("0.001", "0.2")]
    assert decision.baseline == ("0.0005", "0.2")
    assert any(
        line.startswith("peak_lr=0.001, warmup_ratio=0.1 is better than 0.0005, 0.2 for") for line in report(decision)
    )


def test_a_value_without_a_common_seed_is_no_baseline() -> None:
    runs = [run(99, 6.0)] + [
        run(seed, 6.0 + seed / 10, peak_lr=lr, warmup_ratio=ratio)
        for lr, ratio in ((0.001, 0.1), (0.001, 0.2))
        for seed in VALUES
    ]
    decision = decided(runs, Question(("peak_lr", "warmup_ratio")))
    assert decision.baseline == ("0.001", "0.1")
    note = "the baseline is 0.001, 0.1: params.yaml's 0.0005, 0.2 has no seed in common with another value"
    assert note in report(decision)
    asked = decided(runs, Question(("peak_lr", "warmup_ratio"), against=("5e-4", "0.2")))
    assert asked.baseline == ("0.0005", "0.2") and asked.skipped_baseline is None


def test_texts_and_booleans_are_values_too() -> None:
    runs = seeds() + seeds(-0.2, OTHER_NOISE, orig_book_version=True)
    verdict, _ = verdicts(decided(runs, Question(("orig_book_version",))))
    assert verdict.startswith("orig_book_version=true is better than false for")


def test_needs_says_how_many_pairs_a_difference_takes() -> None:
    """And counts the pairs in which a run failed against the difference."""
    runs = seeds() + seeds(-0.02, (0.05, -0.04, 0.03, -0.05, 0.02, -0.01), peak_lr=0.001)
    (line,) = [line for line in report(decided(runs), needs=0.05) if "to see a difference of 0.05" in line]
    assert "about 23 pairs, there are 6" in line and "failed" not in line
    runs[-1] = run(6, status="FAILED", peak_lr=0.001)
    (line,) = [line for line in report(decided(runs), needs=0.05) if "to see a difference of 0.05" in line]
    assert "about 97 pairs, there are 6" in line and "; 1 in which a run failed count against it" in line


def test_where_the_mean_says_otherwise_than_the_pairs_it_says_so() -> None:
    spike = (0, 0, 0, 0, 0, 0, 0, 1.5)
    runs = [run(seed, 6 + seed / 10, peak_lr=0.0005) for seed in range(1, 9)]
    runs += [run(seed, 5.9 + seed / 10 + spike[seed - 1], peak_lr=0.001) for seed in range(1, 9)]
    lines = verdicts(decided(runs))
    assert "undecided by the sign test: better in 7 of 8 pairs" in lines[0]
    assert lines[1] == "peak_lr=0.001: the mean difference, +0.0875, points the other way: without seed 8 it is -0.1000"
    assert len(lines) == 3


def test_where_one_pair_carries_the_mean_it_says_so() -> None:
    changes = (-0.5, 0.01, 0.01, 0.01, -0.01, -0.01, -0.01, -0.01)
    runs = [run(seed, 6 + seed / 10 + change, peak_lr=0.001) for seed, change in enumerate(changes, 1)]
    runs += [run(seed, 6 + seed / 10) for seed in range(1, 9)]
    lines = verdicts(decided(runs))
    assert not any("carries" in line for line in lines)  # -0.0014 without it: the sign stays
    runs[4] = run(5, 6.53, peak_lr=0.001)
    line = "peak_lr=0.001: one pair carries the mean difference, -0.0587: without seed 1 it is +0.00429"
    assert line in verdicts(decided(runs))


@pytest.mark.parametrize(
    ("runs", "question", "message"),
    [
        ([], LR, "there are no runs yet"),
        ([run(1, 6.0)], Question(("seed",)), "seed can't be decided"),
        ([run(1, 6.0)], Question(("peek_lr",)), "peek_lr is not a parameter of train; did you mean peak_lr?"),
        ([run(1, 6.0)], Question(("corpus_url",)), "parameters of the text can't be decided"),
        ([run(1, 6.0)], Question(("temperature",)), "temperature changes no training: only the samples"),
        ([run(1, 6.0)], Question(("peak_lr", "peak_lr")), "named twice"),
        ([run(1, 6.0)], Question(("peak_lr",), "bleu"), "no run has the metric bleu. They have: final_val_loss"),
        ([run(1, 6.0), run(2, 6.0)], LR, "one value of peak_lr only \\(peak_lr=0.0005: 2 runs\\)"),
        ([run(1, 6.0), run(1, 6.0, peak_lr=0.001, n_epochs=3)], LR, "runs of other values differ in n_epochs, too"),
        (seeds() + seeds(peak_lr=0.001), Question(("peak_lr",), against=("3",)), "There are: 0.0005; 0.001"),
        (seeds() + seeds(peak_lr=0.001), Question(("peak_lr",), where={"n_epochs": "3"}), "There are: 15"),
        (seeds() + seeds(peak_lr=0.001), Question(("peak_lr",), where={"n_epoch": "3"}), "no run depends on"),
        (seeds() + seeds(peak_lr=0.001), Question(("peak_lr",), where={"seed": "3"}), "it is what is compared"),
    ],
)
def test_a_question_that_can_t_be_asked_is_an_error(runs: Any, question: Question, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        decided(runs, question)


def test_compare_points_to_decide_where_there_are_other_seeds() -> None:
    runs = seeds() + seeds(peak_lr=0.001)
    assert seeds_hint(runs[0], runs[6], runs) == ["one seed each; `reprogpt decide peak_lr` has 6 pairs"]
    assert seeds_hint(runs[0], runs[7], runs) == []  # seeds differ, too
    assert seeds_hint(runs[0], runs[6], [runs[0], runs[6]]) == []
    assert seeds_hint(runs[0], run(1, 6.0, peak_lr=0.001, n_epochs=3), runs) == []
