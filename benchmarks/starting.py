"""How long a stage takes to start, and what it costs to find that nothing is to be done; and tokenising."""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT
from reprogpt.corpus.tokens import encode, load_encoding

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
    """Seconds (medians, in turn) of `dvc status` and `dvc repro` where split is up to date, in a clone."""
    dvc = str(Path(sys.executable).with_name("dvc"))
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        (clone / "data/corpus").mkdir(parents=True, exist_ok=True)
        shutil.copy(TEXT, clone / "data/corpus/raw.txt")
        subprocess.run([dvc, "repro", "--quiet", "--single-item", "split"], cwd=clone, check=True)
        commands = {"dvc status": [dvc, "status", "split"], "dvc repro": [dvc, "repro", "--single-item", "split"]}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                times[name].append(_seconds(command, clone))
    return {name: statistics.median(found) for name, found in times.items()}


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
