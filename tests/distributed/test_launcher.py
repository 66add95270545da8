"""What the ends of a training's processes mean for the stage that started them."""

import json
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from reprogpt.distributed.launcher import WorkerError, _parse, _root_cause
from reprogpt.errors import DataError, ParamsError, Terminated


class Ends:
    """Ends of processes, by rank, each with what it reported."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, *ends: tuple[int, str, str]) -> dict[int, ProcessFailure]:
        failures = {}
        for rank, (code, kind, message) in enumerate(ends):
            file = self._folder / f"{rank}.json"
            if message:
                file.write_text(json.dumps({"kind": kind, "message": message, "time": float(rank)}))
            failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file=str(file))
        return failures


@pytest.fixture
def ends(tmp_path: Path) -> Ends:
    return Ends(tmp_path)


def test_a_killed_process_is_the_cause_not_the_one_that_lost_its_connection(ends: Ends) -> None:
    reason = _root_cause(ends((1, "", "RuntimeError: connection closed by peer"), (-signal.SIGKILL, "", "")))
    assert isinstance(reason, WorkerError) and str(reason).startswith("process 1 of the training was killed (SIGKILL)")


def test_a_message_for_a_person_is_passed_on_with_its_family(ends: Ends) -> None:
    reason = _root_cause(ends((1, "", "RuntimeError: connection closed by peer"), (2, "DataError", "too short")))
    assert isinstance(reason, DataError) and str(reason) == "too short"


def test_of_two_bugs_the_first_is_shown_with_its_traceback(ends: Ends) -> None:
    reason = _root_cause(ends((1, "", "Traceback: the cause"), (1, "", "Traceback: what followed")))
    assert isinstance(reason, WorkerError) and "process 0" in str(reason) and "the cause" in str(reason)


@pytest.mark.parametrize(("code", "kind"), [(143, Terminated), (130, KeyboardInterrupt)])
def test_a_signal_that_one_process_got_is_what_the_stage_got(ends: Ends, code: int, kind: type) -> None:
    assert isinstance(_root_cause(ends((code, "", ""), (code, "", ""))), kind)


def test_what_torchrun_takes_is_parsed() -> None:
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
def test_what_it_does_not_take_is_refused(torchrun_args: str, fault: str) -> None:
    with pytest.raises(ParamsError, match=fault):
        _parse([], torchrun_args, "stages.train")
