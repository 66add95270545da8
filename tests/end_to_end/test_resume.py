"""Resuming through real DVC: messages, and what is left. tools/kill_trial.py compares bits. In order."""

import os
import signal
import time

import psutil
import pytest

from tests.end_to_end.workspace import Workspace, checkpoints, kill_after_a_checkpoint, make_workspace


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone with tokens, whose training takes some seconds and is saved often."""
    made = make_workspace(
        tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("cache"), n_epochs=6, save_seconds=0.05
    )
    made.succeed("dvc", "repro", "tokenize")
    return made


def test_killed_it_resumes_in_the_same_run_and_leaves_nothing(clone: Workspace) -> None:
    kill_after_a_checkpoint(clone, "dvc", "repro")
    output = clone.succeed("dvc", "repro")
    assert "resumed from the checkpoint at step " in output and "Iter 000000" not in output
    (run,) = clone.runs()
    assert run.info.status == "FINISHED"
    assert not list((clone.path / ".reprogpt/checkpoints").iterdir())
    assert not list((clone.path / ".reprogpt/outbox").iterdir())


@pytest.mark.slow  # tests/training/test_run_dir.py tests the message
def test_after_a_change_it_starts_from_step_0_and_prints_why(clone: Workspace) -> None:
    clone.set_params(peak_lr=0.002)
    kill_after_a_checkpoint(clone, "dvc", "repro")
    clone.set_params(peak_lr=0.003)
    output = clone.succeed("dvc", "repro")
    assert "starting from step 0: the interrupted training differs from this one\n  peak_lr: 0.002 -> 0.003" in output
    assert "resumed" not in output
    assert not list((clone.path / ".reprogpt/checkpoints").iterdir())


@pytest.mark.slow  # tests/training/test_run_dir.py tests the rule
def test_a_forced_training_does_not_resume_from_a_checkpoint(clone: Workspace) -> None:
    clone.set_params(peak_lr=0.004)
    clone.succeed("dvc", "repro", "train")  # no later stage has looked at it yet
    output = clone.succeed("dvc", "repro", "--force", "--single-item", "train")
    assert "resumed" not in output and "Iter 000000" in output


# While it trains, and while it is still importing: without $SHELL, as in cron and containers, DVC uses /bin/sh, which
# may live on between it and its stage.
@pytest.mark.parametrize(("last_line", "shell"), [("Iter 00001", True), ("python -m stages.train", False)])
def test_where_dvc_alone_is_killed_its_stage_saves_a_checkpoint_and_exits(
    clone: Workspace, monkeypatch: pytest.MonkeyPatch, last_line: str, shell: bool
) -> None:
    if not shell:
        monkeypatch.delitem(clone.env, "SHELL", raising=False)
    clone.set_params(peak_lr=0.005 + shell / 1000, n_epochs=100)
    process = clone.start("dvc", "repro")
    try:
        assert process.stdout is not None
        while last_line not in process.stdout.readline():
            assert process.poll() is None
        while not psutil.Process(process.pid).children():  # DVC prints the command before it starts it
            time.sleep(0.01)
        process.kill()  # DVC alone
        output = process.stdout.read()  # to the end of the orphan, which has the pipe too
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else process.wait()
        process.stdout.close()
    assert output.count("Iter 0") < 10  # and not to the end of the training
    process = clone.start("dvc", "repro")
    try:
        assert process.stdout is not None
        while "resumed from the checkpoint at step" not in (line := process.stdout.readline()):
            assert process.poll() is None and "Iter 000000" not in line
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.mark.slow
def test_a_queued_experiment_that_was_killed_resumes_when_it_is_queued_again(clone: Workspace) -> None:
    clone.set_params(peak_lr=0.001, n_epochs=6)
    clone.commit("as it was")
    others = set(checkpoints(clone))
    for name in ("first", "again"):
        clone.succeed("dvc", "exp", "run", "--queue", "--name", name, "-S", "peak_lr=0.006")
        starting = clone.start("dvc", "queue", "start")  # its worker keeps the pipe open: not to be read to its end
        assert starting.wait(60) == 0
        deadline = time.monotonic() + 120
        if name == "first":
            while not set(checkpoints(clone)) - others and time.monotonic() < deadline:
                time.sleep(0.05)
            clone.succeed("dvc", "queue", "kill", "--force", "first")
            assert set(checkpoints(clone)) - others
        else:
            while "Success" not in clone.succeed("dvc", "queue", "status") and time.monotonic() < deadline:
                time.sleep(1)
    clone.succeed("dvc", "queue", "stop")
    assert "resumed from the checkpoint at step" in clone.succeed("dvc", "queue", "logs", "again")
    assert [run.info.run_name for run in clone.runs() if run.data.params["peak_lr"] == "0.006"] == ["again"]
    assert set(checkpoints(clone)) == others
