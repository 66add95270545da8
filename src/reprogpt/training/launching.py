"""Starting a stage in several processes by torch's own launcher, and what their ends mean for the stage."""

import json
import logging
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from reprogpt import errors
from reprogpt.errors import ParamsError, PipelineError, Terminated
from reprogpt.params.train import TrainParams
from reprogpt.training.group import Group, joined_group

STOP_SECONDS = 120  # from a signal to the end of a worker that does not follow it: time for a step and a resume point
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torch's launcher looks for a worker's reason


def launcher() -> psutil.Process | None:
    """The process that started this one as a worker, by torch's launcher; None for any other process."""
    return psutil.Process().parent() if dist.is_torchelastic_launched() else None


def run_in_processes(params: TrainParams, module: str, train: Callable[[TrainParams, Group], None]) -> None:
    """Call train in as many processes as params ask for: here if it is one, else in new ones, by `python -m module`."""
    if params.in_several_processes and launcher() is None:
        launch(module, nproc_per_node=params.nproc_per_node, torchrun_args=params.torchrun_args)
        return
    with worker(), joined_group(params.device) as group:
        train(params, group)


def launch(module: str, *, nproc_per_node: int, torchrun_args: str) -> None:
    """Run `python -m module` in nproc_per_node processes here, and return when all have succeeded.

    torchrun_args: further arguments of torchrun, such as --nnodes, as one would write them in a shell.
    Raises what ended the first that failed: its PipelineError, WorkerError for any other end, KeyboardInterrupt or
    Terminated after a signal, ParamsError for arguments that torchrun refuses.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc_per_node)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of what parallel.py does on purpose
    with tempfile.TemporaryDirectory(prefix="reprogpt-workers-") as log_folder:
        own = [f"--nproc-per-node={nproc_per_node}", f"--shutdown-timeout={STOP_SECONDS}", f"--log-dir={log_folder}"]
        arguments = _parse(own, torchrun_args, module)
        logging.disable()  # torch's launcher logs what is said here in a person's words
        try:
            torchrun.run(arguments)  # type: ignore[no-untyped-call]
        except SignalException as stopped:
            raise (KeyboardInterrupt if stopped.sigval == signal.SIGINT else Terminated) from None
        except ChildFailedError as failed:
            raise _reason(failed.failures) from None
        finally:
            logging.disable(logging.NOTSET)


def _parse(own: list[str], torchrun_args: str, module: str) -> Any:
    said = StringIO()
    try:
        with redirect_stderr(said):
            arguments = torchrun.parse_args([*own, *shlex.split(torchrun_args), "--module", module])  # type: ignore[no-untyped-call]
        fault = f"{arguments.training_script} is no option of it" if arguments.training_script != module else ""
    except ValueError as error:
        fault = str(error)
    except SystemExit:
        fault = said.getvalue().strip().rpartition("error: ")[2]
    if fault:
        raise ParamsError(
            f"torchrun_args: {torchrun_args!r} is not what torchrun takes: {fault}; `torchrun --help` lists it"
        )
    return arguments


class WorkerError(PipelineError):
    """A process of a training ended by itself, with no message for a person."""


def _reason(failures: dict[int, ProcessFailure]) -> BaseException:
    """Why the workers ended: the cause, not what it did to the others, which lose their connection."""
    reports = {rank: failure.error_file_data for rank, failure in failures.items()}  # what worker() wrote, or else
    for rank, failure in failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            return WorkerError(
                f"process {rank} of the training was killed ({name}), so the others were stopped. For want of memory, "
                "perhaps:\nthe system's log would say so. `dvc repro` goes on from the last resume point"
            )
    for report in reports.values():
        kind = getattr(errors, report.get("kind", ""), None)
        if kind is not None:
            return kind(report["message"])  # type: ignore[no-any-return]
    codes = {failure.exitcode for failure in failures.values()}
    if stopped := codes & {130, 143}:  # a signal that one of them got alone; all then stop
        return Terminated() if 143 in stopped else KeyboardInterrupt()
    rank, failure = min(failures.items(), key=lambda item: reports[item[0]].get("time", 0.0))
    text = reports[rank]["message"] or f"exit code {failure.exitcode}"
    return WorkerError(f"process {rank} of the training failed, so the others were stopped:\n\n{text}")


@contextmanager
def worker() -> Iterator[None]:
    """Around all that a worker does: the process ends with it, and the launcher says why, once for all.

    Outside a worker, nothing happens.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    code = 1
    try:
        yield
        code = 0
    except KeyboardInterrupt:
        code = 130
    except Terminated:
        code = 143
    except Exception as error:
        is_ours = isinstance(error, PipelineError)
        report = {
            "kind": type(error).__name__ if is_ours else "",
            "message": str(error) if is_ours else traceback.format_exc(),
            "time": time.time(),
        }
        Path(os.environ[ERROR_FILE]).write_text(json.dumps(report), encoding="utf-8")
        code = 2 if is_ours else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not by way of Python's own end: there gloo's destructor waits, with the interpreter's lock, for a thread
        # of its own that may be waiting for that lock.
        os._exit(code)
