"""A stage that trains in two processes, from outside: one run, one history, one message, and no hang. In order."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from safetensors.numpy import load_file

from tests.end_to_end.workspace import Workspace, make_workspace

LONG = 500  # epochs: nobody waits for their end


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone with tokens, to be trained by two processes."""
    folders = (tmp_path_factory.mktemp(name) for name in ("clone", "cache"))
    made = make_workspace(*folders, nproc_per_node=2, save_seconds=0.05)
    made.succeed("dvc", "repro", "tokenize")
    return made


@contextmanager
def training(clone: Workspace, *command: str) -> Iterator["subprocess.Popen[str]"]:
    """A command that trains, once it has done some steps; whatever is left of it in the end is killed."""
    process = clone.start(*command)
    known = [process.pid]
    try:
        assert process.stdout is not None
        while "Iter 000005" not in process.stdout.readline():
            assert process.poll() is None
        known += [worker.pid for worker in workers_of(process)]
        yield process
    finally:
        for pid in known:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that train, by rank."""
    below = psutil.Process(process.pid).children(recursive=True)
    ranks = {int(child.environ()["RANK"]): child for child in below if "RANK" in child.environ()}
    return [ranks[rank] for rank in sorted(ranks)]


def test_a_process_that_dies_ends_the_stage_which_then_resumes_as_one_run(clone: Workspace) -> None:
    clone.set_params(n_epochs=4)
    with training(clone, "python", "-m", "stages.train") as process:
        workers_of(process)[1].kill()
        assert process.wait(60) == 2
    output = clone.succeed("dvc", "repro", "train")
    assert "resumed from the checkpoint at step" in output and "Iter 000000" not in output
    [run] = clone.runs()
    assert (run.info.status, run.data.tags["num_processes"]) == ("FINISHED", "2")
    assert [point.step for point in clone.client().get_metric_history(run.info.run_id, "loss")] == list(range(36))
    history = (clone.path / "data/metrics/history.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in history[1:]] == [str(step) for step in range(36)]
    assert load_file(clone.path / "data/model/model.safetensors")["transformer.wte.weight"].shape == (50257, 32)


def test_an_error_that_all_processes_meet_is_one_message(clone: Workspace) -> None:
    clone.set_params(vocab_size=300)
    done = clone.run("python", "-m", "stages.train")
    clone.set_params(vocab_size=50257)
    assert done.returncode == 2
    assert done.stderr.count("vocab_size=300 allows 0 to 299") == 1
    announced, _, message = done.stderr.partition("\nerror: ")
    assert [line.partition(":")[0] for line in announced.split("\n") if line] == ["device", "numerics"]
    assert message and "Traceback" not in message


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_on_a_signal_the_stage_saves_a_checkpoint_and_exits(clone: Workspace, number: int, code: int) -> None:
    clone.set_params(n_epochs=LONG + code)
    with training(clone, "python", "-m", "stages.train") as process:
        process.send_signal(number)
        assert process.wait(60) == code
    assert clone.runs()[-1].info.status == "KILLED"
    with training_resumed(clone):
        pass


@contextmanager
def training_resumed(clone: Workspace) -> Iterator[None]:
    process = clone.start("python", "-m", "stages.train")
    try:
        assert process.stdout is not None
        while "resumed from the checkpoint at step" not in (line := process.stdout.readline()):
            assert process.poll() is None and "Iter 000000" not in line
        yield
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


@pytest.mark.slow
def test_where_the_launcher_is_killed_its_processes_save_a_checkpoint_and_exit(clone: Workspace) -> None:
    clone.set_params(n_epochs=LONG)
    with training(clone, "python", "-m", "stages.train") as process:
        workers = workers_of(process)
        process.kill()
        gone, alive = psutil.wait_procs(workers, timeout=30)
        assert len(gone) == 2 and not alive
    with training_resumed(clone):
        pass


@pytest.mark.slow
def test_two_machines_train_as_one(clone: Workspace, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two clones with the same data on this one, each with a launcher and a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    machines = f"'--nnodes=2 --master-addr=127.0.0.1 --master-port={port}'"
    clone.set_params(n_epochs=2, nproc_per_node=1, torchrun_args=machines)
    clone.env["PET_NODE_RANK"] = "0"
    other = Workspace(tmp_path_factory.mktemp("other") / "clone", clone.path / "cache")
    subprocess.run(["cp", "-r", clone.path, other.path], check=True)
    other.env["PET_NODE_RANK"] = "1"
    before = other.files()
    helping = other.start("python", "-m", "stages.train")
    try:
        clone.succeed("dvc", "repro", "train")
        assert helping.wait(60) == 0
    finally:
        helping.kill()
        assert helping.stdout is not None
        helping.stdout.close()
    assert clone.runs()[-1].data.tags["num_processes"] == "2"
    assert other.files() == before and len(other.runs()) + 1 == len(clone.runs())
