"""What grows with runs, with bytes and with processes, for the chapter docs/scale.md.

    python -m benchmarks.scale [--runs N]

Runs: a store with N trainings of the default length, uploaded as ours are. Bytes: the digests that DVC makes of every
file, and ours of the weights. Processes: the gradients of the default model averaged between two processes by gloo.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks.report import ROOT, machine, table
from reprogpt.dvc.digest import dvc_md5
from reprogpt.files import file_digest
from reprogpt.params.loader import read_mapping
from reprogpt.tracking.deliver.outbox import open_outbox
from reprogpt.tracking.deliver.records import Points, TrainingRun
from reprogpt.tracking.deliver.writer import upload
from reprogpt.tracking.store.client import metric_histories, open_store, search_runs
from reprogpt.tracking.store.uri import store_name

STEPS, EVAL_FREQ = 135, 5
VALUES = {"loss": 1.0, "lr": 1e-4, "max_grad": 0.1, "max_grad_clipped": 0.1, "grad_norm": 1.0}
GIGABYTE = 10**9
T = TypeVar("T")
AVERAGING = """
import os, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
gradients = [torch.ones(25 * 2**18) for _ in range(26)]  # 25 MiB each, as DDP's buckets: 162 million parameters
for attempt in range(4):
    dist.barrier()
    started = time.perf_counter()
    for part in gradients:
        dist.all_reduce(part)
    if dist.get_rank() == 0 and attempt:
        print(time.perf_counter() - started, flush=True)
dist.barrier()
os._exit(0)  # gloo's threads may abort a process that ends by way of Python's own end
"""


def measure_runs(num_runs: int) -> dict[str, float]:
    """A store with so many runs, in a temporary folder: what a run takes, and what reading all of them does."""
    params, before = read_mapping(ROOT / "params.yaml"), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            open_store()
            empty = Path("mlflow.db").stat().st_size
            started = time.perf_counter()
            for number in range(num_runs):
                _upload_run(number, params)
            uploading = time.perf_counter() - started
            runs, listing = _timed(search_runs)
            _, history = _timed(partial(metric_histories, runs[0].id, VALUES))
            size = Path("mlflow.db").stat().st_size - empty
        finally:
            os.chdir(before)
    return {
        "uploading a run, s": uploading / num_runs,
        "a run in mlflow.db, kB": size / num_runs / 1000,
        f"reading {num_runs} runs, as compare and lineage do, s": listing,
        "reading one run's history, s": history,
    }


def _upload_run(number: int, params: dict[str, object]) -> None:
    box = open_outbox(f"{number:032d}")
    tags = {"training_id": f"{number}", "run_key": f"{number:032d}"} | {f"tag{index}": "x" * 40 for index in range(30)}
    box.append(TrainingRun(name=f"run-{number}", tags=tags, params=params, datasets=[], store=store_name()))
    for step in range(STEPS):
        evaluated = {"train_loss": 1.0, "val_loss": 1.0, "tokens_seen": 1.0} if step % EVAL_FREQ == 0 else {}
        box.append(Points(step=step, values=VALUES | evaluated))
    upload(box)
    box.release()


def measure_digests() -> dict[str, float]:
    """Gigabytes a second, from a file that the system has in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(os.urandom(GIGABYTE // 10) * 10)
        rates = {}
        for name, digest in {"MD5, as DVC": dvc_md5, "SHA-256": file_digest}.items():
            digest(path)
            rates[f"{name}, GB/s"] = 1 / _timed(partial(digest, path))[1]
        return rates


def measure_averaging() -> dict[str, float]:
    """Seconds that two processes take to average the gradients of the default model."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "averaging.py"
        script.write_text(AVERAGING)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        said = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    return {"gradients of 162 million parameters between two processes, s": statistics.median(map(float, said.split()))}


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    found = measure_digests() | measure_averaging() | measure_runs(parser.parse_args().runs)
    print(table(["", "this machine"], list(machine().items())))
    print(table(["", "measured"], list(found.items())))
