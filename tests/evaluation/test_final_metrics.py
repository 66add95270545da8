"""The metrics of eval.json."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reprogpt.data.tokens import load_encoding
from reprogpt.data.windows import windows
from reprogpt.distributed.process_group import SINGLE_PROCESS
from reprogpt.errors import DataError, NonFiniteError
from reprogpt.evaluation.final_metrics import chosen_rows, final_metrics
from reprogpt.evaluation.losses import sum_losses
from reprogpt.model.gpt import GPTModel
from tests.evaluation import in_processes
from tests.tiny import CPU, model_with_odds, tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model() -> GPTModel:
    """Gives token 0 half the probability, tokens 1 and 2 a quarter each, at every position."""
    return model_with_odds({0: 2.0, 1: 1.0, 2: 1.0})


def test_final_results_of_both_splits(model: GPTModel) -> None:
    # 17 tokens fill two rows of eight predicted tokens; ids 0, 1 and 2 are one byte each.
    train, val = np.zeros(17, np.uint16), np.array([0] * 9 + [1] * 8 + [0] * 5, np.uint16)
    results = final_metrics(model, load_encoding("gpt2"), train, val, batch_size=1, numerics=CPU)
    assert results == {
        "final_train_loss": pytest.approx(math.log(2)),
        "final_val_loss": pytest.approx(1.5 * math.log(2)),
        "val_perplexity": pytest.approx(2**1.5),
        "val_bits_per_byte": pytest.approx(1.5),
        "val_accuracy": 0.5,
    }


def test_bits_per_byte_counts_the_bytes_of_predicted_tokens() -> None:
    # Token 1169 ("the") has three bytes, token 0 one; the first token is not predicted.
    model = tiny_model(vocab_size=50257)
    model.out_head.weight.data.zero_()  # all tokens alike: log2(50257) bits each
    val = np.array([1169, *[0] * 8], np.uint16)
    results = final_metrics(model, load_encoding("gpt2"), val, val, batch_size=1, numerics=CPU)
    assert results["val_bits_per_byte"] == pytest.approx(8 * math.log2(50257) / 8, rel=1e-5)


def test_a_split_shorter_than_a_row_is_refused(model: GPTModel) -> None:
    ids = np.zeros(17, np.uint16)
    with pytest.raises(DataError, match="8 tokens cannot fill one row"):
        final_metrics(model, load_encoding("gpt2"), ids, ids[:8], batch_size=1, numerics=CPU)


def test_weights_that_are_not_finite_give_no_results(model: GPTModel) -> None:
    model.out_head.weight.data[0, 0] = math.nan
    ids = np.zeros(17, np.uint16)
    with pytest.raises(NonFiniteError, match="evaluation of the final weights: final_train_loss is nan"):
        final_metrics(model, load_encoding("gpt2"), ids, ids, batch_size=1, numerics=CPU)


@pytest.mark.parametrize("num_processes", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(num_processes: int) -> None:
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", *torchrun, "-m", "tests.evaluation.in_processes"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == in_processes.evaluate(SINGLE_PROCESS)


def test_batches_are_added_in_their_order_as_one_evaluation_does() -> None:
    ids = np.random.default_rng(0).integers(0, 64, 8 * 11 + 1).astype(np.uint16)
    found = final_metrics(tiny_model(), load_encoding("gpt2"), ids, ids, batch_size=2, numerics=CPU)
    rows = windows(ids, context_length=8, stride=8)
    assert found["final_train_loss"] == sum_losses(tiny_model(), *rows, batch_size=2, numerics=CPU).loss


def test_the_chosen_rows_are_spread_evenly() -> None:
    assert chosen_rows(10, 8, 0).tolist() == chosen_rows(10, 8, 80).tolist() == list(range(10))
    assert chosen_rows(10, 8, 47).tolist() == [0, 2, 4, 6, 8]
    assert chosen_rows(10, 8, 24).tolist() == [0, 3, 6]
    assert chosen_rows(10, 8, 7).tolist() == [0]


def test_the_training_loss_is_that_of_the_chosen_rows() -> None:
    ids = np.random.default_rng(0).integers(0, 64, 8 * 10 + 1).astype(np.uint16)
    found = final_metrics(
        tiny_model(), load_encoding("gpt2"), ids, ids, batch_size=2, numerics=CPU, max_train_tokens=24
    )
    inputs, targets = windows(ids, context_length=8, stride=8)
    rows = np.array([0, 3, 6])
    expected = sum_losses(tiny_model(), inputs[rows], targets[rows], batch_size=2, numerics=CPU)
    assert found["final_train_loss"] == expected.loss
    assert found["final_val_loss"] == sum_losses(tiny_model(), inputs, targets, batch_size=2, numerics=CPU).loss
