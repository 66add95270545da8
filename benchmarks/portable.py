"""What `numerics: portable` costs: a training step of the full-size model, in each numerics.

    python -m benchmarks.portable [--rounds N] [--threads N ...]

Each kind has a process of its own, since variables are read as torch is loaded. The processes wait for each other and
take a step in turn, so that a busy spell of the machine meets all of them. Printed are medians of wall time and, less
sensitive to neighbours, of processor time of all threads. Both processes together take 8 GB of memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("native", "portable")  # the ratios are to the first


def take_steps(num_steps: int) -> Iterator[None]:
    """Take a step of a training at each next(). stages/ has set the environment for params.yaml here."""
    import numpy as np

    from reprogpt.numerics.allocator import retain_freed_memory
    from reprogpt.numerics.device import set_up_numerics
    from reprogpt.params.loader import peek, read_mapping
    from reprogpt.params.train import TrainParams
    from reprogpt.training.build import training_from_ids
    from reprogpt.training.loop import train

    retain_freed_memory()
    values = read_mapping(ROOT / "params.yaml") | peek()
    values |= {"random_order": "independent", "eval_freq": 0, "sample_freq": 0}
    params = TrainParams(**{key: values[key] for key in TrainParams.model_fields})
    numerics = set_up_numerics(**params.arithmetic())
    num_ids = num_steps * params.batch_size * params.stride + params.context_length + 1
    ids = np.random.default_rng(0).integers(0, params.vocab_size, num_ids).astype(np.uint16)
    training = training_from_ids(ids, ids, prompt=[1], params=params, numerics=numerics)
    for _, _ in zip(range(num_steps), train(training), strict=False):
        yield


def answer_with_seconds(num_steps: int) -> None:
    """For each line of standard input, take a step and print its wall and processor seconds as JSON."""
    steps = take_steps(num_steps)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        next(steps)
        print(json.dumps([time.perf_counter() - wall, time.process_time() - processor]), flush=True)


def measure(rounds: int, num_threads: int, folder: Path) -> dict[str, tuple[float, float]]:
    """By kind: medians of a step's wall and processor seconds over the rounds, after one that is not measured."""
    processes: dict[str, subprocess.Popen[str]] = {}
    for name in KINDS:
        own_folder = folder / f"{len(processes)}"
        own_folder.mkdir()
        values = {"numerics": name, "matmul": "auto", "device": "cpu", "precision": "fp32"}
        lines = "".join(f"{key}: {value}\n" for key, value in values.items())
        (own_folder / "params.yaml").write_text(lines, encoding="utf-8")
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        env["OMP_NUM_THREADS"] = str(num_threads)
        command = [sys.executable, "-m", "benchmarks.portable", "--answer", str(rounds + 1)]
        pipe = subprocess.PIPE
        processes[name] = subprocess.Popen(command, cwd=own_folder, env=env, stdin=pipe, stdout=pipe, text=True)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in KINDS}
    for _ in range(rounds + 1):
        for name, process in processes.items():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("step\n")
            process.stdin.flush()
            wall, processor = json.loads(process.stdout.readline())
            found[name].append((wall, processor))
    for process in processes.values():
        process.communicate()
    medians = {}
    for name, seconds in found.items():
        walls, processors = zip(*seconds[1:], strict=True)
        medians[name] = (statistics.median(walls), statistics.median(processors))
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.portable", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="measured steps of each kind")
    parser.add_argument("--threads", type=int, nargs="*", default=[os.cpu_count() or 1], help="one table for each")
    parser.add_argument("--answer", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        answer_with_seconds(arguments.answer)
        return
    for num_threads in arguments.threads:
        with tempfile.TemporaryDirectory() as folder:
            medians = measure(arguments.rounds, num_threads, Path(folder))
        base = medians["native"]
        title = f"seconds a step (medians), threads: {num_threads}"
        print(f"\n| {title} | wall | processor | wall, ratio | processor, ratio |")
        print("|---|---|---|---|---|")
        for name, (wall, processor) in medians.items():
            print(f"| {name} | {wall:.2f} | {processor:.2f} | {wall / base[0]:.2f} | {processor / base[1]:.2f} |")


if __name__ == "__main__":
    if "--answer" in sys.argv:
        import stages  # noqa: F401 - sets the environment before torch is imported
    main()
