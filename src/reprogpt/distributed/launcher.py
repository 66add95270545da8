"""Starts a stage in several processes with torchrun, and turns the way they end into the stage's own result."""

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
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from reprogpt import errors
from reprogpt.distributed.process_group import ProcessGroup, init_process_group
from reprogpt.errors import ParamsError, PipelineError, Terminated
from reprogpt.params.shared import SharedParams

SHUTDOWN_TIMEOUT = 120  # seconds for a worker to finish its step and save a checkpoint after a signal
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # environment variable: where torchrun looks for a worker's error


def launcher_process() -> psutil.Process | None:
    """The torchrun process that started this worker; None in any other process."""
    return psutil.Process().parent() if dist.is_torchelastic_launched() else None


P = TypeVar("P", bound=SharedParams)


def run_in_processes(
    params: P, module: str, work: Callable[[P, ProcessGroup], None], *, torchrun_args: str = ""
) -> None:
    """Call work in this process, or in nproc_per_node new ones started as `python -m module`.

    torchrun_args: as in params.yaml, for processes of several machines.
    """
    in_several_processes = params.nproc_per_node > 1 or bool(torchrun_args)
    _require_a_gpu_each(params, in_several_processes)
    if in_several_processes and launcher_process() is None:
        launch(module, nproc_per_node=params.nproc_per_node, torchrun_args=torchrun_args)
        return
    with worker_errors(), init_process_group(params.device) as group:
        work(params, group)


def _require_a_gpu_each(params: SharedParams, in_several_processes: bool) -> None:
    """Raise ParamsError if several processes of this machine would have to share a GPU."""
    if params.device in ("auto", "cuda") and torch.cuda.is_available():
        num_gpus = torch.cuda.device_count()
        if params.nproc_per_node > num_gpus:
            raise ParamsError(
                f"nproc_per_node={params.nproc_per_node}, but this machine has {num_gpus} GPU"
                f"{'' if num_gpus == 1 else 's'}, one per process; set it to at most {num_gpus}, or device to cpu"
            )
    elif in_several_processes and params.device in ("auto", "mps") and torch.backends.mps.is_available():
        raise ParamsError(
            "device: mps is for one process: it has one GPU and no communication between processes;\n"
            'set device to cpu, or nproc_per_node to 1 and torchrun_args to ""'
        )


def launch(module: str, *, nproc_per_node: int, torchrun_args: str) -> None:
    """Run `python -m module` in nproc_per_node processes of this machine, and return when all have succeeded.

    torchrun_args: further arguments of torchrun, such as --nnodes, as in a shell.
    Raises the PipelineError of the first worker that failed, WorkerError if it failed otherwise, KeyboardInterrupt
    or Terminated after a signal, ParamsError for arguments that torchrun refuses.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc_per_node)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns about what parallel.py does on purpose
    with tempfile.TemporaryDirectory(prefix="reprogpt-workers-") as log_folder:
        own = [
            f"--nproc-per-node={nproc_per_node}",
            f"--shutdown-timeout={SHUTDOWN_TIMEOUT}",
            f"--log-dir={log_folder}",
        ]
        arguments = _parse(own, torchrun_args, module)
        logging.disable()  # torchrun logs a traceback for each failure; one message follows instead
        try:
            torchrun.run(arguments)  # type: ignore[no-untyped-call]
        except SignalException as stopped:
            raise (KeyboardInterrupt if stopped.sigval == signal.SIGINT else Terminated) from None
        except ChildFailedError as failed:
            raise _root_cause(failed.failures) from None
        finally:
            logging.disable(logging.NOTSET)


def _parse(own: list[str], torchrun_args: str, module: str) -> Any:
    stderr = StringIO()
    try:
        with redirect_stderr(stderr):
            arguments = torchrun.parse_args([*own, *shlex.split(torchrun_args), "--module", module])  # type: ignore[no-untyped-call]
        fault = f"{arguments.training_script} is no option of it" if arguments.training_script != module else ""
    except ValueError as error:
        fault = str(error)
    except SystemExit:
        fault = stderr.getvalue().strip().rpartition("error: ")[2]
    if fault:
        raise ParamsError(
            f"torchrun_args: {torchrun_args!r} is not what torchrun takes: {fault}; `torchrun --help` lists it"
        )
    return arguments


class WorkerError(PipelineError):
    """A process of a training failed with something other than a PipelineError."""


def _root_cause(failures: dict[int, ProcessFailure]) -> BaseException:
    """The failure that came first, not the connection errors that it caused in other workers."""
    reports = {rank: failure.error_file_data for rank, failure in failures.items()}  # written by worker_errors()
    for rank, failure in failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            return WorkerError(
                f"process {rank} of the training was killed ({name}), so the others were stopped. It may have run out "
                "of memory:\nsee the system's log. `dvc repro` resumes from the latest checkpoint"
            )
    for report in reports.values():
        error_class = getattr(errors, report.get("error_class", ""), None)
        if error_class is not None:
            return error_class(report["message"])  # type: ignore[no-any-return]
    codes = {failure.exitcode for failure in failures.values()}
    if 143 in codes:  # one worker got a signal; all then stop
        return Terminated()
    if 130 in codes:
        return KeyboardInterrupt()
    rank, failure = min(failures.items(), key=lambda item: reports[item[0]].get("time", 0.0))
    text = reports[rank]["message"] or f"exit code {failure.exitcode}"
    return WorkerError(f"process {rank} of the training failed, so the others were stopped:\n\n{text}")


@contextmanager
def worker_errors() -> Iterator[None]:
    """Report a worker's error to torchrun through its error file, and end the process when the block ends.

    Outside a torchrun worker, nothing happens.
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
            "error_class": type(error).__name__ if is_ours else "",
            "message": str(error) if is_ours else traceback.format_exc(),
            "time": time.time(),
        }
        Path(os.environ[ERROR_FILE]).write_text(json.dumps(report), encoding="utf-8")
        code = 2 if is_ours else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: at interpreter shutdown gloo's destructor holds the GIL and waits for a thread that may be
        # waiting for the GIL.
        os._exit(code)
