"""How long a stage takes to start, and what it costs to find that nothing is to be done; and tokenising."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sized
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, TEXT
from reprogpt.data.tokens import encode, load_encoding
from reprogpt.dvc.pipeline import out_paths
from reprogpt.params.loader import DVC_FILE, read_mapping
from tools.workspace import copy_workspace

STAGES = ("fetch", "split", "tokenize", "train", "evaluate", "plot")
HEAVY = ("torch", "mlflow", "matplotlib", "pandas", "tiktoken", "requests")


def measure_starting(rounds: int) -> dict[str, dict[str, Any]]:
    """Of a bare interpreter and each stage's imports, in turn: seconds (median), and what heavy was imported."""
    programs = {"bare interpreter": "pass"} | {stage: f"import stages.{stage}" for stage in STAGES}
    commands = {name: [sys.executable, "-c", program] for name, program in programs.items()}
    seconds = _medians({name: partial(_seconds, command, ROOT) for name, command in commands.items()}, rounds)
    return {name: {"seconds": seconds[name], "imports": _heavy_imports(program)} for name, program in programs.items()}


def _heavy_imports(program: str) -> list[str]:
    question = f"import sys\n{program}\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", question], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split()


def measure_nothing_to_do(rounds: int) -> dict[str, float]:
    """Seconds (medians, in turn) of `dvc status` and `dvc repro` where the whole pipeline is up to date."""
    dvc = str(Path(sys.executable).with_name("dvc"))
    with tempfile.TemporaryDirectory() as folder:
        workspace = copy_workspace(Path(folder) / "workspace")
        _pretend_all_is_made(workspace, dvc)
        return _medians(
            {f"dvc {name}": partial(_seconds, [dvc, name], workspace) for name in ("status", "repro")}, rounds
        )


def _pretend_all_is_made(workspace: Path, dvc: str) -> None:
    """Put something in the place of every out and have DVC record it: no stage runs, and none needs to."""
    for definition in read_mapping(workspace / DVC_FILE)["stages"].values():
        for out in out_paths(definition):
            path = workspace / out if Path(out).suffix else workspace / out / "something"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(out, "utf-8")
    subprocess.run([dvc, "commit", "--force", "--quiet"], cwd=workspace, check=True)
    status = subprocess.run([dvc, "status"], cwd=workspace, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "up to date" in status, status


def measure_tokenising(rounds: int, num_chars: int) -> dict[str, float]:
    """Tokens a second (medians, in turn) of this package and of tiktoken alone, on num_chars of the bundled text."""
    encoding, text = load_encoding("gpt2"), TEXT.read_text("utf-8")
    text = (text * (num_chars // len(text) + 1))[:num_chars]
    ways: dict[str, Callable[[str], Sized]] = {
        "reprogpt": partial(encode, encoding),
        "tiktoken": encoding.encode_ordinary,
    }
    return _medians({name: partial(_rate, way, text) for name, way in ways.items()}, rounds)


def _medians(measurements: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Of so many rounds, in each of which every measurement has its turn."""
    found = [{name: measure() for name, measure in measurements.items()} for _ in range(rounds)]
    return {name: statistics.median(values[name] for values in found) for name in measurements}


def _rate(way: Callable[[str], Sized], text: str) -> float:
    started = time.perf_counter()
    num_tokens = len(way(text))
    return num_tokens / (time.perf_counter() - started)


def _seconds(command: list[str], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started
