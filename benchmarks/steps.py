"""Step, evaluation and sample of all contenders, in turn, so that a busy spell of the machine meets all of them."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.products import flops_of_a_step
from benchmarks.report import ROOT, table
from benchmarks.work import CONTENDERS, PHASES, read_params

WARM_UP = 2
# Work, and after how many of the rounds it is done once: a sample takes longer than a step and varies less.
WORK = {"step": 1, "evaluation": 2, "sample": 3}
PRODUCT_ROUNDS = 3  # after all steps: their memory is not a step's


class Contender:
    """A process that waits until it is told to work."""

    def __init__(self, name: str, params_file: Path) -> None:
        self._name = name
        command = [sys.executable, "-m", "benchmarks.contender", name, str(params_file)]
        # Threads that wait for work must not turn in circles meanwhile: another contender has its turn.
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_WAIT_POLICY": "passive"}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def do(self, work: str) -> dict[str, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{work}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"contender {self._name} ended before it answered; its message is above")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def measure_steps(params_file: Path, rounds: int) -> dict[str, Any]:
    """By contender, in seconds: medians of the step, its phases, an evaluation and a sample; the fastest step and
    products; peak memory in bytes.
    """
    contenders = {name: Contender(name, params_file) for name in CONTENDERS}
    try:
        return _measure(contenders, rounds)
    finally:
        for contender in contenders.values():
            contender.close()


def _measure(contenders: dict[str, Contender], rounds: int) -> dict[str, Any]:
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {work: [] for work in WORK} for name in contenders}
    for _ in range(WARM_UP):
        for contender in contenders.values():
            contender.do("step")
    for number in range(rounds):
        for work, every in WORK.items():
            if number % every == 0:
                for name, contender in contenders.items():
                    found[name][work].append(contender.do(work))
    products: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(PRODUCT_ROUNDS):
        for name, contender in contenders.items():
            products[name].append(contender.do("products")["seconds"])
    results = {}
    for name in contenders:
        peak = max(answer["peak_bytes"] for answers in found[name].values() for answer in answers)
        medians = {
            work: statistics.median(answer["seconds"] for answer in answers) for work, answers in found[name].items()
        }
        phases = {phase: statistics.median(answer[phase] for answer in found[name]["step"]) for phase in PHASES}
        fastest = {"fastest step": min(answer["seconds"] for answer in found[name]["step"])}
        results[name] = medians | fastest | phases | {"products": min(products[name]), "peak_bytes": peak}
    return results


def tables(results: dict[str, Any], params_file: Path) -> str:
    """Two tables: times, and what follows from them."""
    params = read_params(params_file)
    flops, tokens = flops_of_a_step(params), params.batch_size * params.context_length
    names = ("step", "fastest step", *PHASES, "evaluation", "sample")
    times = [
        [f"{name}, ms", *(1000 * results[who][name] for who in results), *_ratios(results, name)] for name in names
    ]
    rows = [
        ["tokens per second", *(tokens / found["step"] for found in results.values())],
        ["peak memory, GB", *(found["peak_bytes"] / 1e9 for found in results.values())],
        ["GFLOP a step", *(flops / 1e9 for _ in results)],
        ["GFLOP/s, fastest step", *(flops / found["fastest step"] / 1e9 for found in results.values())],
        ["limit: its products alone, GFLOP/s", *(flops / found["products"] / 1e9 for found in results.values())],
        ["fraction of that limit", *(found["products"] / found["fastest step"] for found in results.values())],
    ]
    head = ["", *results]
    ratios = [f"book / {name}" for name in results if name != "book"]
    return f"{table([*head, *ratios], times)}\n\n{table(head, rows)}"


def _ratios(results: dict[str, Any], name: str) -> list[float]:
    return [results["book"][name] / found[name] for who, found in results.items() if who != "book"]
