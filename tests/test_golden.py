"""Golden numbers of the full-size model: those of the book's own code, and our own on the bundled text.

Where a number depends on the processor, its tolerance is that of another processor's rounding. The
book's text is not part of the repository: its tests run where an earlier `dvc repro` has downloaded it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import torch
from torch.nn import functional

from benchmarks.baseline import PlainGPT, loss_of
from reprogpt.data.split import cut_position
from reprogpt.data.tokens import encode, load_encoding
from reprogpt.data.windows import windows
from reprogpt.model.gpt import GPTConfig, GPTModel
from reprogpt.numerics.device import Numerics, set_up_numerics
from reprogpt.params.loader import read_mapping
from reprogpt.params.train import TrainParams
from reprogpt.runs.results import read_table
from reprogpt.training.build import training_from_ids
from reprogpt.training.gradients import gradient_stats
from reprogpt.training.loop import accumulate_gradients, train
from reprogpt.training.schedule import plan_training
from tests.tiny import PARAMS, USUAL_NUM_THREADS

ROOT = Path(__file__).parents[1]
BOOK_PARAMS = TrainParams(**PARAMS | {"batch_size": 2, "n_epochs": 15, "warmup_ratio": 0.2})
BOOK_LENGTHS = {"steps_per_epoch": 9, "total_steps": 135, "warmup_steps": 27}
THE_VERDICT = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"
GPT_124M: dict[str, Any] = {
    "vocab_size": 50257,
    "context_length": 256,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}

# Of the untrained model on the bundled text's training windows 0 and 1, dropout off. Made by
#   PYTHONPATH=src:. python -m tests.test_golden
# (Python 3.11, torch 2.13.0, CPU).
BUNDLED_LOSS = 10.96527

Ids = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def cpu() -> Iterator[Numerics]:
    """torch's own matmul, which the book's numbers come from, on all cores."""
    before, setting = torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    torch.set_num_threads(USUAL_NUM_THREADS)
    yield set_up_numerics(device="cpu", precision="fp32", matmul="torch")
    torch.set_num_threads(before)
    torch.backends.mkldnn.matmul.fp32_precision = setting  # type: ignore[attr-defined]


def untrained_model() -> GPTModel:
    torch.manual_seed(123)
    return GPTModel(GPTConfig(**GPT_124M)).eval()


@pytest.fixture(scope="module")
def model(cpu: Numerics) -> GPTModel:
    """The untrained model; no test changes its weights."""
    return untrained_model()


@pytest.fixture(scope="module")
def encoding(own_environment: None) -> tiktoken.Encoding:
    return load_encoding("gpt2")


@pytest.fixture(scope="module")
def verdict(real_download_cache: Path) -> str:
    """The book's text."""
    path = real_download_cache / "corpora" / THE_VERDICT
    if not path.is_file():
        pytest.skip(f"The Verdict is not in the download cache ({path}); `dvc repro` puts it there")
    return path.read_bytes().decode()


@pytest.fixture(scope="module")
def verdict_ids(verdict: str, encoding: tiktoken.Encoding) -> Ids:
    return ids_of(verdict, encoding)


def bundled_text() -> str:
    path = ROOT / str(read_mapping(ROOT / "params.yaml")["offline_corpus"])
    return path.read_bytes().decode()


def ids_of(text: str, encoding: tiktoken.Encoding) -> Ids:
    """Training and validation ids."""
    cut = cut_position(len(text), 0.9)
    return encode(encoding, text[:cut]), encode(encoding, text[cut:])


def loss_on_windows_0_and_1(model: GPTModel, ids: np.ndarray) -> torch.Tensor:
    inputs, targets = (torch.from_numpy(rows[:2]) for rows in windows(ids, context_length=256, stride=256))
    return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def num_rows(ids: np.ndarray) -> int:
    return len(windows(ids, context_length=256, stride=256)[0])


def digest(ids: np.ndarray) -> str:
    return hashlib.sha256(ids.astype("<u2").tobytes()).hexdigest()


def test_untrained_weights_are_the_books(model: GPTModel) -> None:
    query = model.get_parameter("trf_blocks.0.att.W_query.weight")
    assert model.tok_emb.weight[0, :3].tolist() == [0.3373701870441437, -0.1777772158384323, -0.3035275936126709]
    assert query[0, :3].tolist() == [0.02834736742079258, -0.03321906924247742, 0.01250658929347992]
    assert model.out_head.weight[0, :3].tolist() == [
        -0.028531109914183617,
        -0.0213463231921196,
        -0.0034006601199507713,
    ]


def test_the_verdict_is_split_and_tokenized_as_in_the_book(verdict: str, encoding: tiktoken.Encoding) -> None:
    assert (len(verdict), cut_position(len(verdict), 0.9)) == (20479, 18431)
    assert len(encode(encoding, verdict)) == 5145


def test_ids_of_the_verdict_are_the_books(verdict_ids: Ids) -> None:
    train_ids, val_ids = verdict_ids
    assert (len(train_ids), len(val_ids)) == (4612, 534)
    assert train_ids[:8].tolist() == [40, 367, 2885, 1464, 1807, 3619, 402, 271]
    assert digest(train_ids) == "c26a996810fe9514eab9d7cb07bf4426a0a52cafbc30874e5b442a66dcd9d39f"
    assert digest(val_ids) == "bc505f933197b4ae839357954a0ec7ef21c7c8c75d55e940ac9a629e75758719"


def test_the_verdict_gives_the_books_rows_and_steps(verdict_ids: Ids) -> None:
    assert [num_rows(ids) for ids in verdict_ids] == [18, 2]
    assert plan_training(18, BOOK_PARAMS).lengths == BOOK_LENGTHS


def test_loss_and_gradients_of_the_untrained_model_are_the_books(model: GPTModel, verdict_ids: Ids) -> None:
    loss = loss_on_windows_0_and_1(model, verdict_ids[0])
    torch.autograd.backward(loss)
    max_grad, max_grad_clipped, grad_norm = gradient_stats(model.parameters(), 1.0)[0].tolist()
    model.zero_grad()
    assert loss.item() == pytest.approx(10.99399, abs=5e-6)
    assert max_grad == pytest.approx(0.041851, abs=2e-6)
    assert max_grad_clipped == pytest.approx(0.018569, abs=2e-6)
    assert grad_norm == pytest.approx(2.253754, abs=2e-6)


def test_gradients_of_a_step_are_those_of_the_plain_model(cpu: Numerics, encoding: tiktoken.Encoding) -> None:
    """Within 1e-5, by the fastest matmul backend of this processor, against torch's own."""
    ids = ids_of(bundled_text(), encoding)[0]
    inputs, targets = (torch.from_numpy(rows[:2]) for rows in windows(ids, context_length=256, stride=256))
    torch.manual_seed(123)
    plain = PlainGPT(**GPT_124M | {"drop_rate": 0.0})
    plain_loss = loss_of(plain, inputs, targets)
    torch.autograd.backward(plain_loss)
    fast = set_up_numerics(device="cpu", precision="fp32", matmul="auto")
    lengths = {"batch_size": 2, "stride": 256, "drop_rate": 0.0}
    training = training_from_ids(ids, ids, prompt=[1], params=TrainParams(**PARAMS | GPT_124M | lengths), numerics=fast)
    loss = accumulate_gradients(training, inputs, targets)
    assert loss.item() == pytest.approx(plain_loss.item(), rel=1e-6)
    for one, other in zip(training.model.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert (one.grad - other.grad).norm() < 1e-5 * other.grad.norm()
    set_up_numerics(device="cpu", precision="fp32", matmul=cpu.matmul)


def test_the_bundled_text_takes_as_many_steps_as_the_books(encoding: tiktoken.Encoding) -> None:
    rows = num_rows(ids_of(bundled_text(), encoding)[0])
    assert rows == 18
    assert plan_training(rows, BOOK_PARAMS).lengths == BOOK_LENGTHS


def test_loss_of_the_untrained_model_on_the_bundled_text(model: GPTModel, encoding: tiktoken.Encoding) -> None:
    with torch.no_grad():
        loss = loss_on_windows_0_and_1(model, ids_of(bundled_text(), encoding)[0])
    assert loss.item() == pytest.approx(BUNDLED_LOSS, abs=5e-6)


# Training and validation losses published with the book's code, by step.
PUBLISHED = {
    int(line["step"]): (float(line["train_loss"]), float(line["val_loss"]))
    for line in read_table(ROOT / "docs/published.csv")
}


@pytest.mark.slow  # CI runs it by name
def test_with_the_book_policy_the_first_two_epochs_have_the_published_losses(
    cpu: Numerics, verdict_ids: Ids, encoding: tiktoken.Encoding
) -> None:
    lengths = {"batch_size": 2, "stride": 256, "n_epochs": 15, "eval_freq": 5, "eval_iter": 1, "sample_freq": 0}
    rates = {"initial_lr": 0.00001, "peak_lr": 0.001, "min_lr": 0.00001, "warmup_ratio": 0.2, "lr_decay": "cosine"}
    rest = {"seed": 123, "weight_decay": 0.1, "max_norm": 1.0, "orig_book_version": False, "random_order": "book"}
    params = TrainParams(**PARAMS | GPT_124M | lengths | rates | rest)
    prompt = encoding.encode_ordinary("Every effort moves you")
    records = train(training_from_ids(*verdict_ids, prompt=prompt, params=params, numerics=cpu))
    for _, record in zip(range(16), records, strict=False):
        if record.train_loss is not None:
            assert (record.train_loss, record.val_loss) == pytest.approx(PUBLISHED[record.step], abs=0.001)
    assert record.step == 15


if __name__ == "__main__":
    set_up_numerics(device="cpu", precision="fp32", matmul="torch")
    with torch.no_grad():
        ids = ids_of(bundled_text(), load_encoding("gpt2"))[0]
        print(f"{loss_on_windows_0_and_1(untrained_model(), ids).item():.5f}")
