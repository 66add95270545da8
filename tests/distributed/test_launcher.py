"""What the exits of worker processes mean for the stage that started them."""

import json
import signal
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from reprogpt.distributed import launcher
from reprogpt.distributed.launcher import WorkerError, _parse, _root_cause, run_in_processes
from reprogpt.errors import DataError, OutOfMemoryError, ParamsError, Terminated
from reprogpt.params.train import TrainParams
from tests.tiny import PARAMS


class WorkerExits:
    """Failures of worker processes, by rank, each with its exit code and report."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, *exits: tuple[int, str, str]) -> dict[int, ProcessFailure]:
        failures = {}
        for rank, (code, error_class, message) in enumerate(exits):
            file = self._folder / f"{rank}.json"
            if message:
                file.write_text(json.dumps({"error_class": error_class, "message": message, "time": float(rank)}))
            failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file=str(file))
        return failures


@pytest.fixture
def exits(tmp_path: Path) -> WorkerExits:
    return WorkerExits(tmp_path)


def test_a_killed_process_is_the_cause_not_the_one_that_lost_its_connection(exits: WorkerExits) -> None:
    cause = _root_cause(exits((1, "", "RuntimeError: connection closed by peer"), (-signal.SIGKILL, "", "")))
    assert isinstance(cause, WorkerError) and str(cause).startswith("process 1 of the training was killed (SIGKILL)")


def test_a_pipeline_error_is_raised_again_with_its_class_and_message(exits: WorkerExits) -> None:
    cause = _root_cause(exits((1, "", "RuntimeError: connection closed by peer"), (2, "DataError", "too short")))
    assert isinstance(cause, DataError) and str(cause) == "too short"


def test_out_of_memory_in_a_worker_is_the_stages_own_error(exits: WorkerExits) -> None:
    cause = _root_cause(exits((2, "OutOfMemoryError", "out of memory: 2 GiB"), (1, "", "RuntimeError: closed by peer")))
    assert isinstance(cause, OutOfMemoryError) and str(cause) == "out of memory: 2 GiB"


def test_of_two_bugs_the_first_is_reported_with_its_traceback(exits: WorkerExits) -> None:
    cause = _root_cause(exits((1, "", "Traceback: the cause"), (1, "", "Traceback: what followed")))
    assert isinstance(cause, WorkerError) and "process 0" in str(cause) and "the cause" in str(cause)


@pytest.mark.parametrize(("code", "exception"), [(143, Terminated), (130, KeyboardInterrupt)])
def test_a_signal_to_one_worker_is_raised_in_the_stage(exits: WorkerExits, code: int, exception: type) -> None:
    assert isinstance(_root_cause(exits((code, "", ""), (code, "", ""))), exception)


def test_arguments_of_torchrun_are_parsed() -> None:
    arguments = _parse(["--nproc-per-node=2"], "--nnodes=2 --rdzv-conf 'a=1,b=2'", "stages.train")
    assert (arguments.nnodes, arguments.rdzv_conf, arguments.training_script) == ("2", "a=1,b=2", "stages.train")


@pytest.mark.parametrize(
    ("torchrun_args", "fault"),
    [
        ("--nodes=2", "unrecognized arguments: --nodes=2"),
        ("--nnodes='2", "No closing quotation"),
        ("other.py", "other.py is no"),
    ],
)
def test_other_arguments_are_refused(torchrun_args: str, fault: str) -> None:
    with pytest.raises(ParamsError, match=fault):
        _parse([], torchrun_args, "stages.train")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of processes that were started."""
    started: list[int] = []
    monkeypatch.setattr(launcher, "launch", lambda module, **arguments: started.append(arguments["nproc_per_node"]))
    return started


def start(device: str, nproc_per_node: int, torchrun_args: str = "") -> None:
    changes = {"device": device, "nproc_per_node": nproc_per_node, "torchrun_args": torchrun_args, "batch_size": 12}
    params = TrainParams(**PARAMS | changes)
    run_in_processes(params, "stages.train", lambda params, group: None, torchrun_args=torchrun_args)


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize(("num_gpus", "named"), [(1, "1 GPU"), (2, "2 GPUs")])
def test_more_processes_than_gpus_are_refused(
    device: str, num_gpus: int, named: str, launched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    with pytest.raises(
        ParamsError, match=rf"^nproc_per_node=3, but this machine has {named}, one per .* at most {num_gpus}, or device"
    ):
        start(device, 3)
    assert launched == []
    start("cpu", 3)
    start(device, num_gpus, "--nnodes=2")
    assert launched == [3, num_gpus]


@pytest.mark.parametrize("device", ["auto", "mps"])
@pytest.mark.parametrize(("nproc_per_node", "torchrun_args"), [(2, ""), (1, "--nnodes=2")])
def test_several_processes_on_mps_are_refused(
    device: str, nproc_per_node: int, torchrun_args: str, launched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ParamsError, match=r"^device: mps is for one process"):
        start(device, nproc_per_node, torchrun_args)
    assert launched == []
    start("cpu", nproc_per_node, torchrun_args)
    assert launched == [nproc_per_node]
