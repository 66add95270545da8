"""How stages exit on an error of the user, on Ctrl-C and on a loss that is not finite."""

import importlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from reprogpt.errors import PipelineError
from tests.end_to_end.workspace import Workspace


@pytest.fixture(scope="module")
def prepared(workspace: Workspace) -> Workspace:
    """The clone with tokens, and nothing trained."""
    workspace.succeed("dvc", "repro", "tokenize")
    return workspace


@pytest.fixture(scope="module")
def trained(prepared: Workspace) -> Workspace:
    """The clone with a model."""
    prepared.succeed("dvc", "repro", "train")
    return prepared


@pytest.fixture(autouse=True)
def _params_restored(workspace: Workspace) -> Iterator[None]:
    before = (workspace.path / "params.yaml").read_bytes()
    yield
    (workspace.path / "params.yaml").write_bytes(before)


@pytest.fixture
def refused(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Run train, here for speed, with params.yaml as it is; it must refuse and write nothing. The message."""
    monkeypatch.chdir(prepared.path)
    monkeypatch.setenv("DVC_ROOT", str(prepared.path))
    monkeypatch.setenv("REPROGPT_CACHE", prepared.env["REPROGPT_CACHE"])

    def run() -> str:
        with pytest.raises(PipelineError) as caught:
            importlib.import_module("stages.train").main()
        assert not (prepared.path / "data/model").exists()
        return str(caught.value)

    return run


def test_a_text_too_short_for_a_row_says_how_many_tokens_are_needed(
    prepared: Workspace, refused: Callable[[], str]
) -> None:
    prepared.set_params(context_length=1000, stride=1000)
    assert "validation text: 638 tokens cannot fill one row: context_length=1000 needs at least 1001" in refused()


def test_too_few_rows_for_a_batch_are_refused(prepared: Workspace, refused: Callable[[], str]) -> None:
    prepared.set_params(batch_size=500)
    assert "75 rows, fewer than batch_size=500" in refused()


def test_ids_beyond_the_vocabulary_are_refused(prepared: Workspace, refused: Callable[[], str]) -> None:
    prepared.set_params(vocab_size=300)
    assert "vocab_size=300 allows 0 to 299" in refused()


def test_truncated_token_files_are_refused(prepared: Workspace) -> None:
    path = prepared.path / "data/tokens/val.npy"
    whole = path.read_bytes()
    path.unlink()  # a hard link into DVC's cache, which must stay whole
    path.write_bytes(whole[:-7])
    done = prepared.run("python", "-m", "stages.train")  # a process of its own: exit code 2 and no traceback
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: data/tokens/val.npy is truncated or not a token file" in done.stderr
    assert "Traceback" not in done.stderr
    path.write_bytes(whole)


def test_cuda_is_refused_where_there_is_none(
    prepared: Workspace, refused: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared.set_params(device="cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device: cuda is not available on this machine (found: cpu" in refused()


def test_a_loss_that_is_not_finite_stops_at_its_step_and_fails_the_run(
    prepared: Workspace, refused: Callable[[], str]
) -> None:
    prepared.set_params(peak_lr="1e30", initial_lr="1e30", min_lr=0.0, max_norm="1e30", warmup_ratio=0, eval_freq=0)
    message = refused()
    assert "not a finite number" in message and "step 1:" in message
    run = prepared.runs()[-1]
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == message


@pytest.mark.parametrize(
    ("number", "code", "n_epochs"), [(signal.SIGINT, 130, 1000), (signal.SIGTERM, 143, 1001)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_in_training_kills_the_run_and_writes_nothing(
    prepared: Workspace, number: int, code: int, n_epochs: int
) -> None:
    prepared.set_params(n_epochs=n_epochs)
    known = len(prepared.runs())
    process = prepared.start("python", "-m", "stages.train")
    try:
        assert process.stdout is not None
        while "Iter 000005" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == code
    finally:
        process.kill()
        process.stdout.close()
    assert not (prepared.path / "data/model").exists()
    assert not list((prepared.path / "data").rglob("*.tmp"))
    runs = prepared.runs()
    assert len(runs) == known + 1
    assert runs[-1].info.status == "KILLED"


def test_ctrl_c_at_dvc_ends_stage_and_pipeline(prepared: Workspace) -> None:
    """Ctrl-C reaches the whole foreground group: DVC and the stage."""
    prepared.set_params(n_epochs=1002)
    process = prepared.start("dvc", "repro")
    try:
        assert process.stdout is not None
        while "Iter 000005" not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.stdout.close()
    deadline = time.monotonic() + 30  # DVC does not wait for the end of its stage
    while prepared.runs()[-1].info.status == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert prepared.runs()[-1].info.status == "KILLED"
    assert not (prepared.path / "data/model").exists()


@pytest.mark.parametrize(
    ("stage", "reads"),
    [
        ("split", "data/corpus/raw.txt"),
        ("tokenize", "data/corpus/train.txt"),
        ("evaluate", "data/tokens/train.npy"),
        ("plot", "data/metrics/history.csv"),
    ],
)
def test_ctrl_c_in_a_stage_is_130_and_leaves_no_half_written_file(trained: Workspace, stage: str, reads: str) -> None:
    """A named pipe in place of an input blocks the stage until the signal comes."""
    path = trained.path / reads
    whole = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    before = trained.files()
    process = trained.start("python", "-m", f"stages.{stage}")
    try:
        writer = os.open(path, os.O_WRONLY)  # waits until the stage has opened the pipe
        time.sleep(0.5)  # and is in the midst of reading, where a library may swallow the signal
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        os.close(writer)
    finally:
        process.kill()
        path.unlink()
        path.write_bytes(whole)
    assert {name: content for name, content in trained.files().items() if name != reads} == before
    if stage in ("evaluate", "plot"):
        assert trained.runs()[-1].info.status == "KILLED"


def test_ctrl_c_while_fetch_waits_for_a_server_is_130(trained: Workspace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        trained.set_params(corpus_url=f"http://127.0.0.1:{server.getsockname()[1]}/text")
        before = trained.files()
        process = trained.start("python", "-m", "stages.fetch")
        try:
            server.settimeout(60)
            connection, _ = server.accept()  # and never answer
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            connection.close()
        finally:
            process.kill()
    assert trained.files() == before


def test_a_truncated_model_is_refused(trained: Workspace) -> None:
    path = trained.path / "data/model/model.safetensors"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-100])
    done = trained.run("python", "-m", "stages.evaluate")
    assert done.returncode == 2
    assert "data/model/model.safetensors is missing, cut short or not a safetensors file" in done.stderr
    assert "Traceback" not in done.stderr
    assert trained.runs()[-1].info.status == "FAILED"
    path.write_bytes(whole)


@pytest.mark.slow  # tests/tracking/deliver/test_writer.py tests the rule
def test_without_an_mlflow_run_evaluate_prints_a_message_and_succeeds(trained: Workspace) -> None:
    trained.env["MLFLOW_TRACKING_URI"] = "sqlite:///another.db"
    output = trained.succeed("dvc", "repro")
    assert trained.stages_run(output) == ["evaluate", "plot"]
    assert output.count("No MLflow run has run_key") == 2
    assert (trained.path / "data/metrics/eval.json").exists()
    assert (trained.path / "another.db").exists()


@pytest.mark.slow  # tests/tracking/deliver/test_failing_disk.py and tests/training/test_run_dir.py test the parts
def test_where_only_bookkeeping_fails_a_training_ends_well_and_is_recorded(prepared: Workspace) -> None:
    state = prepared.path / ".reprogpt"
    shutil.rmtree(state, ignore_errors=True)
    state.write_text("")
    done = prepared.run("python", "-m", "stages.train")
    state.unlink()
    assert done.returncode == 0, done.stderr
    assert (prepared.path / "data/model/model.safetensors").exists() and "Traceback" not in done.stderr
    assert "saves no checkpoints" in done.stderr and "Records for MLflow are queued in" in done.stderr
    assert prepared.runs()[-1].info.status == "FINISHED"
