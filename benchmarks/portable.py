"""What `numerics: portable` costs: a training step of the full-size model, in each numerics.

    python -m benchmarks.portable [ROUNDS]

Each round runs each kind once, in a process of its own (the switches are read as numpy and torch
are loaded), one after the other, so that a busy spell of the machine meets all of them. Printed are
medians over all rounds, of wall time and, less sensitive to neighbours, of processor time of all
threads; OMP_NUM_THREADS sets the threads, as for a training.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 4  # timed, after one that is not
KINDS = {
    "native": {"numerics": "native", "matmul": "auto"},
    "native, matmul: torch": {"numerics": "native", "matmul": "torch"},
    "portable": {"numerics": "portable", "matmul": "auto"},
}


def measure(numerics: str, matmul: str) -> dict[str, list[float]]:
    """Seconds of each step; stages/ has set the environment for params.yaml in the current folder."""
    import numpy as np

    from reprogpt.numerics.allocator import retain_freed_memory
    from reprogpt.numerics.device import set_up_numerics
    from reprogpt.params.loader import read_mapping
    from reprogpt.params.train import TrainParams
    from reprogpt.training.build import training_from_ids
    from reprogpt.training.loop import train

    retain_freed_memory()
    values = read_mapping(ROOT / "params.yaml")
    values |= {"device": "cpu", "precision": "fp32", "numerics": numerics, "matmul": matmul}
    values |= {"random_order": "independent", "eval_freq": 0, "sample_freq": 0}
    params = TrainParams(**{key: values[key] for key in TrainParams.model_fields})
    arithmetic = set_up_numerics(device="cpu", precision="fp32", matmul=matmul, numerics=numerics)
    num_ids = (STEPS + 1) * params.batch_size * params.stride + params.context_length + 1
    ids = np.random.default_rng(0).integers(0, params.vocab_size, num_ids).astype(np.uint16)
    training = training_from_ids(ids, ids, prompt=[1], params=params, numerics=arithmetic)
    clocks = []
    for _, _ in zip(range(STEPS + 1), train(training), strict=False):
        clocks.append((time.perf_counter(), time.process_time()))
    pairs = list(itertools.pairwise(clocks))
    return {name: [after[i] - before[i] for before, after in pairs] for i, name in enumerate(("wall", "processor"))}


def measure_in_a_process(kind: dict[str, str]) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "params.yaml").write_text(f"numerics: {kind['numerics']}\n", encoding="utf-8")
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        command = [sys.executable, "-m", "benchmarks.portable", "--measure", kind["numerics"], kind["matmul"]]
        done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True, check=True)
    times: dict[str, list[float]] = json.loads(done.stdout)
    return times


def main(rounds: int) -> None:
    times: dict[str, dict[str, list[float]]] = {name: {"wall": [], "processor": []} for name in KINDS}
    for _ in range(rounds):
        for name, kind in KINDS.items():
            for clock, seconds in measure_in_a_process(kind).items():
                times[name][clock] += seconds
    print("| seconds a step (medians) | wall | processor | wall, ratio | processor, ratio |\n|---|---|---|---|---|")
    medians = {name: {clock: statistics.median(found[clock]) for clock in found} for name, found in times.items()}
    for name, found in medians.items():
        ratios = [found[clock] / medians["native"][clock] for clock in ("wall", "processor")]
        print(f"| {name} | {found['wall']:.2f} | {found['processor']:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        import stages  # noqa: F401 - sets the environment before numpy is imported

        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
