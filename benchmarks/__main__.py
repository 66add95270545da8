"""How fast this is, beside the book's own formulation, on this machine. Prints tables, writes benchmarks/results.json.

    python -m benchmarks [PART ...] [--params FILE] [--rounds N]

Parts: steps, watching, starting, tokenising (all four if none is named: a quarter of an hour on two cores) and whole,
the train stage from start to end, which takes another half an hour.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks import starting, steps, watching, whole
from benchmarks.report import ROOT, machine, table
from benchmarks.work import CONTENDERS
from reprogpt.files import write_json_atomic

PARTS = ("steps", "watching", "starting", "tokenising")
RESULTS = ROOT / "benchmarks/results.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "whole", []], default=[], metavar="PART")
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="another params.yaml")
    parser.add_argument("--rounds", type=int, default=7, help="how often each thing is measured")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
    print(table(["", "this machine"], list(results["machine"].items())))
    if "bf16" not in CONTENDERS:
        print("\nbf16 is left out: this processor has neither bf16 nor AVX-512 instructions")
    for part in arguments.parts or PARTS:
        results[part], text = _PARTS[part](arguments.params, arguments.rounds)
        print(f"\n{part}\n\n{text}", flush=True)
        write_json_atomic(arguments.results, results)  # after each: a later part that fails loses none
    print(f"\n{arguments.results}")


def _steps(params_file: Path, rounds: int) -> tuple[Any, str]:
    results = steps.measure_steps(params_file, rounds)
    return results, steps.tables(results, params_file)


def _whole(params_file: Path, rounds: int) -> tuple[Any, str]:
    seconds = whole.measure_whole(params_file)
    rows = [[name, found, seconds["book"] / found] for name, found in seconds.items()]
    return seconds, table(["", "seconds", "book / this"], rows)


def _watching(params_file: Path, rounds: int) -> tuple[Any, str]:
    contender = steps.Contender("fp32", params_file)
    step_seconds = min(contender.do("step")["seconds"] for _ in range(3))
    contender.close()
    rows = watching.measure_watching(step_seconds, seconds=4.0 * rounds, many=100_000)
    header = ["MLflow on", "steps before", "training waits, ms a step", "processor, ms a step", "of a step"]
    cells = [[row["store"], row["earlier"], row["waiting"], row["processor"], f"{row['share']:.2%}"] for row in rows]
    return {"step_seconds": step_seconds, "rows": rows}, table(header, cells)


def _starting(params_file: Path, rounds: int) -> tuple[Any, str]:
    stages, nothing = starting.measure_starting(rounds), starting.measure_nothing_to_do(rounds)
    bare = stages["bare interpreter"]["seconds"]
    rows = [
        [name, found["seconds"], found["seconds"] - bare, ", ".join(found["imports"])] for name, found in stages.items()
    ]
    rows += [[f"{name}, nothing to do", seconds, seconds - bare, ""] for name, seconds in nothing.items()]
    return {"stages": stages, "nothing_to_do": nothing}, table(
        ["", "seconds to start", "above a bare interpreter", "imports"], rows
    )


def _tokenising(params_file: Path, rounds: int) -> tuple[Any, str]:
    rates = starting.measure_tokenising(rounds, num_chars=2_000_000)
    return rates, table(["", "tokens a second"], list(rates.items()))


_PARTS = {"steps": _steps, "whole": _whole, "watching": _watching, "starting": _starting, "tokenising": _tokenising}

if __name__ == "__main__":
    main()
