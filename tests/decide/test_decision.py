"""Which runs are compared, what is concluded from them, and what is said."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from reprogpt.cli.compare import seeds_hint
from reprogpt.decide.decision import Decision, Question, make_decision
from reprogpt.decide.groups import RECORDED_AS_TAGS, WATCHING, canonical
from reprogpt.decide.report import report, verdicts
from reprogpt.errors import PipelineError
from reprogpt.params.train import TrainParams
from reprogpt.tracking.log.environment import ENVIRONMENT_TAGS
from reprogpt.tracking.store.tracked_run import TrackedRun

PRESENT = {
    "device": "auto",
    "matmul": "auto",
    "peak_lr": 0.0005,
    "warmup_ratio": 0.2,
    "n_epochs": 15,
    "orig_book_version": False,
    "eval_freq": 5,
}
VALUES = {1: 6.41, 2: 6.52, 3: 6.47, 4: 6.44, 5: 6.5}  # seed -> final_val_loss
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
        tags={"device": "cpu", "matmul": "torch", "train_code": "c", "torch": "2", "weights.sha256": f"w{number}"}
        | (tags or {}),
        metrics={} if value is None else {"final_val_loss": value},
        datasets={"data/tokens/train.npy": "t"},
    )


def seeds(change: float = 0.0, noise: Sequence[float] = (0, 0.01, -0.01, 0.005, 0), **params: Any) -> list[TrackedRun]:
    """Runs of five seeds, each `change` plus some noise above VALUES."""
    return [run(seed, VALUES[seed] + change + noise[seed - 1], **params) for seed in VALUES]


def decided(
    runs: Sequence[TrackedRun], question: Question = LR, present: Any = None, queued: Sequence[Any] = ()
) -> Decision:
    return make_decision(question, runs, present or PRESENT, queued)


def test_a_difference_that_all_pairs_share_is_decided() -> None:
    decision = decided(seeds() + seeds(-0.2, (0.01, -0.01, 0, 0.01, -0.01), peak_lr=0.001))
    assert decision.decided
    assert decision.baseline == ("0.0005",)
    (verdict,) = verdicts(decision)
    assert verdict.startswith("peak_lr=0.001 is better than 0.0005 by 0.2010 nats (")
    assert verdict.endswith("), on this text")
    (comparison,) = decision.comparisons
    low, high = comparison.interval
    assert low < comparison.mean < high < 0
    assert comparison.correlation == pytest.approx(0.99, abs=0.005)
    assert comparison.variance_ratio > 5


def test_the_other_way_round_it_is_worse() -> None:
    runs = seeds() + seeds(-0.2, (0.01, -0.01, 0, 0.01, -0.01), peak_lr=0.001)
    (verdict,) = verdicts(decided(runs, Question(("peak_lr",), against=("1e-3",))))
    assert verdict.startswith("peak_lr=0.0005 is worse than 0.001 by 0.2010 nats (")


def test_where_higher_is_better_the_sign_is_turned() -> None:
    runs = seeds() + seeds(-0.2, (0.01, -0.01, 0, 0.01, -0.01), peak_lr=0.001)
    (verdict,) = verdicts(decided(runs, Question(("peak_lr",), higher_is_better=True)))
    assert verdict.startswith("peak_lr=0.001 is worse than 0.0005 by")


def test_noise_is_undecided_and_the_missing_runs_are_queued() -> None:
    decision = decided(seeds() + seeds(-0.04, (0.05, -0.04, 0.03, -0.05, 0.02), peak_lr=0.001))
    assert not decision.decided
    lines = report(decision)
    (verdict,) = [line for line in lines if "undecided" in line]
    assert "5 pairs; about" in verdict and "more would settle a difference of this size" in verdict
    assert lines[-1] == "dvc queue start"
    assert lines[-2].startswith("dvc exp run --queue -S 'peak_lr=0.0005,0.001' -S 'seed=range(6,")


def test_fewer_than_three_pairs_are_never_decided() -> None:
    runs = [one for one in seeds() + seeds(-1, (0,) * 5, peak_lr=0.001) if one.params["seed"] in "12"]
    assert verdicts(decided(runs)) == ["peak_lr=0.001 against 0.0005: undecided: 2 pairs; fewer than 3 never decide"]


def test_only_the_missing_combinations_are_queued() -> None:
    runs = [run(seed, 6 + seed / 10) for seed in (1, 2, 3)] + [run(1, 5.9, peak_lr=0.001)]
    lines = report(decided(runs))
    assert "dvc exp run --queue -S 'peak_lr=0.001' -S 'seed=2,3'" in lines
    runs.append(run(8, 5.9, peak_lr=0.001))
    runs.pop(2)
    lines = report(decided(runs))
    assert "dvc exp run --queue -S 'peak_lr=0.001' -S 'seed=2'" in lines
    assert "dvc exp run --queue -S 'peak_lr=0.0005' -S 'seed=8'" in lines


def test_runs_that_train_or_are_queued_are_not_queued_again() -> None:
    runs = [run(seed, 6 + seed / 10) for seed in (1, 2)] + [run(1, 5.9, peak_lr=0.001)]
    runs += [run(2, status="RUNNING", peak_lr=0.001)]
    queued: list[dict[str, Any]] = [PRESENT | {"seed": 3, "peak_lr": 1e-3}]
    queued += [PRESENT | {"seed": 3, "n_epochs": 2}, {"seed": 3}, PRESENT | {"seed": "three"}]  # none of these runs
    lines = report(decided(runs, queued=queued))
    assert lines[-2:] == ["dvc exp run --queue -S 'peak_lr=0.0005' -S 'seed=3'", "dvc queue start"]
    lines = report(decided(runs, queued=[*queued, PRESENT | {"seed": 3}]))
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
    assert [canonical(value) for value in ("5e-4", "0.0005", 0.0005)] == ["0.0005"] * 3
    assert [canonical(value) for value in ("1.0", "1", 1, 1.0)] == ["1"] * 4
    assert [canonical(value) for value in ("True", "true", True)] == ["true"] * 3
    assert [canonical(value) for value in ("None", None, "null")] == ["null"] * 3
    assert canonical("1_0") == "1_0"
    decision = decided(seeds(peak_lr="5e-4") + seeds(-1, peak_lr="0.001")[:3] + seeds(-1, peak_lr="1e-3")[3:])
    assert decision.group.levels == [("0.0005",), ("0.001",)]
    assert decision.comparisons[0].num_pairs == 5


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
    runs = seeds(-3, **change)[:4] + seeds(-2, peak_lr=0.001, **change) + seeds() + seeds(-0.1, peak_lr=0.001)
    decision = decided(runs)
    lines = report(decision)
    if "n_epochs" in change:
        assert decision.group.num_runs == 10
        assert "another group: 9 runs, --where n_epochs=10" in lines
        (name, value) = ("n_epochs", "10")
    else:  # equal parameters: the newest, which are the first
        assert decision.group.num_runs == 9
        (name, value) = next(iter(change["tags"].items()))
    chosen = decided(runs, Question(("peak_lr",), where={name: value}))
    assert chosen.group.num_runs == 9


@pytest.mark.parametrize("key", sorted(WATCHING))
def test_watching_keys_don_t_matter(key: str) -> None:
    assert key in TrainParams.model_fields
    values: tuple[Any, ...] = ({key: 7}, {key: 8}, {key: 9})
    first, second, third = values
    runs = seeds(0, **first)[:2] + seeds(0, **second)[2:] + seeds(-0.1, **third, peak_lr=0.001)
    assert decided(runs).comparisons[0].num_pairs == 5


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


def test_names_of_keys_and_tags_exist() -> None:
    assert set(RECORDED_AS_TAGS) <= set(TrainParams.model_fields)
    assert {tag for tags in RECORDED_AS_TAGS.values() for tag in tags} <= {*ENVIRONMENT_TAGS, "started_from_sha256"}


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
        assert decided(runs).group.num_runs == 10
    else:
        with pytest.raises(PipelineError, match="differ in cpu_vendor"):
            decided(runs)


def test_runs_that_can_t_be_compared_are_left_out_and_named() -> None:
    runs = [
        run(6, status="RUNNING"),
        run(6, status="KILLED"),
        run(7),
        run(1, 9.0, tags={"mlflow.parentRunId": "x"}),
        *seeds(),
        *seeds(-0.1, peak_lr=0.001),
        run(1, 6.41),
    ]
    decision = decided(runs)
    assert decision.group.num_runs == 10
    lines = report(decision)
    assert f"left out: 1 still training ({runs[0].name})" in lines
    assert "left out: 1 stopped before the end" in lines
    assert "left out: 1 without final_val_loss (evaluate has not run)" in lines
    assert "left out: 1 repeating a value and seed" in lines


def test_a_repeat_counts_once_and_a_failure_gives_way_to_a_finished_run() -> None:
    runs = [run(1, status="FAILED", peak_lr=0.001), *seeds(), *seeds(-0.1, peak_lr=0.001), run(1, 99.0)]
    summary, other = decided(runs).summaries
    assert (summary.num_seeds, summary.num_failed) == (5, 0)
    assert (other.num_seeds, other.num_failed) == (5, 0)
    assert summary.values[1] == pytest.approx(VALUES[1])


@pytest.mark.parametrize("how", [{"value": math.nan}, {"value": math.inf}, {"value": None, "status": "FAILED"}])
def test_diverged_and_failed_runs_count_as_the_worst(how: Any) -> None:
    runs = seeds() + [run(seed, peak_lr=0.1, **how) for seed in VALUES]
    decision = decided(runs)
    assert decision.best == ("0.0005",)
    (comparison,) = decision.comparisons
    assert comparison.by_signs and comparison.signs == (0, 5)
    assert "undecided: 5 pairs; about 3 more" in verdicts(decision)[0]
    runs += [run(seed, 6.0) for seed in (6, 7, 8)] + [run(seed, peak_lr=0.1, **how) for seed in (6, 7, 8)]
    (verdict,) = verdicts(decided(runs))
    assert verdict.startswith("peak_lr=0.1 is worse than 0.0005 in 8 of 8 pairs, by the sign test")


def test_equal_bits_are_called_identical() -> None:
    """As with eval_freq, which changes no weights: the difference is exactly 0."""
    runs = [
        run(seed, VALUES[seed], eval_freq=value, tags={"weights.sha256": f"w{seed}"})
        for value in (5, 1)
        for seed in VALUES
    ]
    decision = decided(runs, Question(("eval_freq",)))
    assert decision.decided
    assert verdicts(decision) == ["eval_freq=1 and 5 are identical to the bit in 5 pairs: it makes no difference here"]


def test_the_present_params_choose_the_group() -> None:
    runs = seeds(n_epochs=3) + seeds(peak_lr=0.001, n_epochs=3) + seeds() + seeds(peak_lr=0.001)
    assert decided(runs).group.inputs["n_epochs"] == "15"
    assert decided(runs).differs_from_present == {}
    assert decided(runs, present=PRESENT | {"n_epochs": 3}).group.inputs["n_epochs"] == "3"
    other = decided(runs, present=PRESENT | {"n_epochs": 99})
    assert other.differs_from_present == {"n_epochs": ("3", "99")}
    lines = report(other)
    assert "not those of params.yaml, which has no runs of two values: n_epochs=3 (there 99)" in lines
    assert any("-S 'n_epochs=3'" in line for line in lines if line.startswith("dvc exp run"))


def test_several_values_have_a_plateau_and_are_held_together_by_holm() -> None:
    noise = (0.004, -0.003, 0.002, -0.004, 0.001)
    runs = seeds(0.5, peak_lr=0.0001) + seeds() + seeds(-0.2, noise, peak_lr=0.001) + seeds(-0.199, peak_lr=0.002)
    decision = decided(runs)
    assert decision.best == ("0.001",)
    assert decision.plateau == [("0.001",), ("0.002",)]
    lines = report(decision)
    assert "plateau: peak_lr from 0.001 to 0.002 can't be told from the best mean, 0.001" in lines
    assert any("(Holm)" in line for line in lines)
    alone = decided(runs[:10]).comparisons[0].p
    assert next(one.p for one in decision.comparisons if one.level == ("0.0001",)) > alone


def test_two_keys_make_a_value_of_each_combination() -> None:
    runs = seeds() + seeds(-0.1, peak_lr=0.001) + seeds(-0.3, (0.01, 0, 0, 0.01, 0), peak_lr=0.001, warmup_ratio=0.1)
    decision = decided(runs, Question(("peak_lr", "warmup_ratio")))
    assert decision.group.levels == [("0.0005", "0.2"), ("0.001", "0.1"), ("0.001", "0.2")]
    assert decision.baseline == ("0.0005", "0.2")
    assert any(
        line.startswith("peak_lr=0.001, warmup_ratio=0.1 is better than 0.0005, 0.2 by") for line in report(decision)
    )


def test_texts_and_booleans_are_values_too() -> None:
    runs = seeds() + seeds(-0.2, (0.01, -0.01, 0, 0.01, -0.01), orig_book_version=True)
    (verdict,) = verdicts(decided(runs, Question(("orig_book_version",))))
    assert verdict.startswith("orig_book_version=true is better than false by")


def test_needs_says_how_many_pairs_a_difference_takes() -> None:
    runs = seeds() + seeds(-0.02, (0.05, -0.04, 0.03, -0.05, 0.02), peak_lr=0.001)
    (line,) = [line for line in report(decided(runs), needs=0.04) if "to see a difference of 0.04" in line]
    assert "about 27 pairs, there are 5" in line


@pytest.mark.parametrize(
    ("runs", "question", "message"),
    [
        ([], LR, "there are no runs yet"),
        ([run(1, 6.0)], Question(("seed",)), "seed can't be decided"),
        ([run(1, 6.0)], Question(("peek_lr",)), "peek_lr is not a parameter of train; did you mean peak_lr?"),
        ([run(1, 6.0)], Question(("corpus_url",)), "parameters of the text can't be decided"),
        ([run(1, 6.0)], Question(("temperature",)), "changes no training and no loss"),
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
    assert seeds_hint(runs[0], runs[5], runs) == ["one seed each; `reprogpt decide peak_lr` has 5 pairs"]
    assert seeds_hint(runs[0], runs[6], runs) == []  # seeds differ, too
    assert seeds_hint(runs[0], runs[5], [runs[0], runs[5]]) == []
    assert seeds_hint(runs[0], run(1, 6.0, peak_lr=0.001, n_epochs=3), runs) == []
