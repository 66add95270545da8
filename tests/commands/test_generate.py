"""Text from a checkpoint: in parts, the same for the same seed, and as an ordinary program among others."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiktoken
import torch

from reprogpt.commands.generate import Sampling, as_text, generate_text
from reprogpt.corpus.tokens import decode, load_encoding
from reprogpt.errors import PipelineError
from reprogpt.model.checkpoint import load_model, save_model
from reprogpt.model.generation import generate
from reprogpt.model.gpt import GPTConfig, GPTModel
from reprogpt.record.store import open_store

ROOT = Path(__file__).resolve().parents[2]
SOME = Sampling(length=6, temperature=0.0, top_k=None, seed=123)


@pytest.fixture
def encoding() -> tiktoken.Encoding:
    return load_encoding("gpt2")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data/model."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(50257, 16, 8, 2, 1, 0.1, False))
    save_model(tmp_path / "data/model", model)
    return tmp_path


def text_of(
    sampling: Sampling, capsys: pytest.CaptureFixture[str], prompt: str = "Every", run: str | None = None
) -> str:
    generate_text(prompt, sampling, run)
    return capsys.readouterr().out


def test_a_character_comes_with_its_last_token(encoding: tiktoken.Encoding) -> None:
    ids = encoding.encode_ordinary("a🙂b")
    assert len(ids) > 3
    assert list(as_text(encoding, ids)) == ["a", *[""] * (len(ids) - 3), "🙂", "b", ""]


def test_what_never_becomes_a_character_is_not_dropped(encoding: tiktoken.Encoding) -> None:
    ids = [*encoding.encode_ordinary("a🙂")[:-1], 60000]
    assert "".join(as_text(encoding, ids)) == decode(encoding, ids) == "a\ufffd\ufffd"


def test_text_comes_before_the_next_token_is_made(encoding: tiktoken.Encoding) -> None:
    def broken() -> Iterator[int]:
        yield encoding.encode_ordinary("Every")[0]
        raise RuntimeError

    parts = as_text(encoding, broken())
    assert next(parts) == "Every"


def test_greedy_text_is_the_models(
    workspace: Path, encoding: tiktoken.Encoding, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = encoding.encode_ordinary("Every")
    wanted = decode(encoding, ids + list(generate(load_model(Path("data/model")), ids, 6)))
    assert text_of(SOME, capsys) == f"{wanted}\n"


def test_one_seed_gives_one_text(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = Sampling(length=20, temperature=1.0, top_k=50, seed=1)
    texts = [text_of(first, capsys) for _ in range(2)]
    assert texts[0] == texts[1] != text_of(Sampling(20, 1.0, 50, seed=2), capsys)


def test_the_checkpoint_of_a_run_is_named_like_a_run_elsewhere(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = text_of(SOME, capsys)
    client, experiment = open_store()
    run = client.create_run(experiment, run_name="mine")
    client.log_artifacts(run.info.run_id, "data/model", "checkpoint")
    (workspace / "data").rename(workspace / "elsewhere")
    assert text_of(SOME, capsys, run="mine") == text_of(SOME, capsys, run=run.info.run_id[:8]) == wanted
    with pytest.raises(PipelineError, match="no MLflow run has the id or name other"):
        generate_text("Every", SOME, "other")


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(0, 0.0, None, 1), "--length 0 must be at least 1"),
        (Sampling(1, -0.5, None, 1), "--temperature -0.5 must be a number of at least 0"),
        (Sampling(1, float("nan"), None, 1), "--temperature nan must be"),
        (Sampling(1, 1.0, 0, 1), "--top-k 0 must be at least 1"),
        (Sampling(1, 1.0, None, -1), "--seed -1 must be at least 0"),
        (Sampling(0, 1.0, 0, 1), "--length 0 must be at least 1; --top-k 0"),
    ],
)
def test_a_value_out_of_bounds_is_named(sampling: Sampling, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        generate_text("Every", sampling, None)


def test_an_empty_prompt_and_a_missing_model_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match="the prompt is empty"):
        generate_text("", SOME, None)
    with pytest.raises(PipelineError, match="data/model is not there: `dvc repro` makes it"):
        generate_text("Every", SOME, None)


def test_a_token_that_the_model_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "data/model", GPTModel(GPTConfig(64, 16, 8, 2, 1, 0.1, False)))
    with pytest.raises(PipelineError, match="the prompt has token id 6109, but the model knows 64 only"):
        generate_text("Every", SOME, None)


def in_a_shell(workspace: Path, command: str) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=workspace, env=env, capture_output=True, text=True, timeout=120
    )


def test_in_a_pipe_it_reads_and_writes_text_and_nothing_else(workspace: Path) -> None:
    done = in_a_shell(workspace, "echo -n Every | python -m reprogpt generate - --length 3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == in_a_shell(workspace, "python -m reprogpt generate Every --length 3").stdout
    assert done.stdout.startswith("Every")


def test_a_reader_that_stops_early_ends_it_without_a_word(workspace: Path) -> None:
    done = in_a_shell(workspace, "python -m reprogpt generate Every --length 200 | head -c 3")
    assert (done.returncode, done.stdout, done.stderr) == (141, "Eve", "")  # 128 + SIGPIPE


def test_help_waits_for_neither_torch_nor_mlflow(workspace: Path) -> None:
    for words in ("", "generate"):
        done = in_a_shell(workspace, f"python -X importtime -m reprogpt {words} --help")
        assert done.returncode == 0 and "examples:" in done.stdout
        assert "torch" not in done.stderr and "mlflow" not in done.stderr and "pydantic" not in done.stderr
