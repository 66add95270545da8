"""What the exits of worker processes mean for the stage that started them."""

import json
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from reprogpt.distributed.launcher import WorkerError, _parse, _root_cause
from reprogpt.errors import DataError, ParamsError, Terminated


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
