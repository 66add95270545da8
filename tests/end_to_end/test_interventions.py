"""All interventions in one experiment, from the command line to MLflow. Tests run in their order."""

import json

import pytest

from reprogpt.model.gpt2_format import load_model
from tests.end_to_end.workspace import Workspace

pytestmark = pytest.mark.slow  # tests/training and tests/params test each of them

CHANGES = {
    "max_norm": "null",
    "clip_from": "start",
    "lr_decay": "wsd",
    "decay_ratio": "0.5",
    "beta1": "0.8",
    "beta2": "0.95",
    "eps": "1e-07",
    "decay_matrices_only": "true",
    "tie_weights": "true",
    "keep": "best",
    "eval_freq": "2",
    "numerics": "native",  # of several processes, too: portable numerics are for one
}


@pytest.fixture(scope="module")
def changed(workspace: Workspace) -> Workspace:
    """The clone after one `dvc exp run` that changes all of them."""
    options = [word for key, value in CHANGES.items() for word in ("-S", f"{key}={value}")]
    workspace.succeed("dvc", "exp", "run", "--name", "changed", *options)
    return workspace


def test_the_run_has_the_changed_parameters_and_says_whose_weights_it_has(changed: Workspace) -> None:
    (run,) = changed.runs()
    assert run.info.status == "FINISHED"
    as_python_writes = {"null": "None", "true": "True"}
    assert {key: run.data.params[key] for key in CHANGES} == {
        key: as_python_writes.get(value, value) for key, value in CHANGES.items()
    }
    summary = json.loads(changed.files()["data/metrics/train.json"])
    assert summary["max_norm"] is None
    assert (summary["keep"], summary["kept_step"]) == (["best"], [summary["best_step"]])
    assert run.data.tags["weights.step"] == str(summary["best_step"])
    assert run.data.metrics["best_val_loss"] == summary["best_val_loss"]
    model = load_model(changed.path / "data/model")
    assert model.out_head.weight is model.tok_emb.weight
    assert run.data.tags["num_parameters"] == str(sum(parameter.numel() for parameter in model.parameters()))


def test_lineage_holds_and_a_second_repro_runs_nothing(changed: Workspace) -> None:
    changed.succeed("python", "-m", "reprogpt", "lineage")
    assert changed.stages_run(changed.succeed("dvc", "repro")) == []
    changed.succeed("python", "-m", "reprogpt", "check")


def test_evaluate_in_two_processes_writes_the_same_bytes_and_says_what_it_left_out(changed: Workspace) -> None:
    names = ("data/metrics/eval.json", "data/samples.txt")
    before = changed.files()
    changed.set_params(nproc_per_node=2)
    output = changed.succeed("python", "-m", "stages.evaluate")
    assert output.count("evaluate: validation loss") == 1 and "spread evenly" not in output
    assert [name for name in names if changed.files()[name] != before[name]] == []
    changed.set_params(eval_max_tokens=640)
    assert "final_train_loss is of 10 of 75 rows of 64 tokens, spread evenly" in changed.succeed(
        "python", "-m", "stages.evaluate"
    )
