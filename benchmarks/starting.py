"""How long a stage takes to start, and what it costs to find that nothing is to be done; and tokenising."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT
from benchmarks.workspace import copy_workspace
from reprogpt.corpus.tokens import encode, load_encoding
from reprogpt.params import DVC_FILE, read_mapping
from reprogpt.pipeline import out_paths

STAGES = ("fetch", "split", "tokenize", "train", "evaluate", "plot")
HEAVY = ("torch", "mlflow", "matplotlib", "pandas", "tiktoken", "requests")
TEXT = ROOT / "data/offline/an-error-of-the-press.txt"


def measure_starting(rounds: int) -> dict[str, dict[str, Any]]:
    """Of a bare interpreter and each stage's imports, in turn: seconds (median), and what heavy was imported."""
    programs = {"bare interpreter": "pass"} | {stage: f"import stages.{stage}" for stage in STAGES}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            times[name].append(_seconds([sys.executable, "-c", program], ROOT))
    return {
        name: {"seconds": statistics.median(times[name]), "imports": _heavy_imports(program)}
        for name, program in programs.items()
    }


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
        commands = {"dvc status": [dvc, "status"], "dvc repro": [dvc, "repro"]}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                times[name].append(_seconds(command, workspace))
    return {name: statistics.median(found) for name, found in times.items()}


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
    ways: dict[str, Callable[[], Sized]] = {
        "reprogpt": lambda: encode(encoding, text),
        "tiktoken": lambda: encoding.encode_ordinary(text),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            num_tokens = len(way())
            rates[name].append(num_tokens / (time.perf_counter() - started))
    return {name: statistics.median(found) for name, found in rates.items()}


def _seconds(command: list[str], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started
