"""The pipeline on a text larger than its memory: peak memory of each stage, tokenising rate, time to a first step.

    python -m benchmarks.large [--megabytes N]

Makes the text, copies the working tree into a temporary folder, and runs the stages there on it and on a small text, in
turn. Train and evaluate have a tiny model, and are ended after a minute: they need the same memory however far they go.
Takes 4.5 bytes of disk for each byte of text and, with 1000 megabytes on two idle cores, some ten minutes.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.report import TEXT, machine, table
from reprogpt.data.tokenize import num_cpus
from reprogpt.data.tokens import load_encoding
from reprogpt.files import read_json
from tools.workspace import copy_workspace

TINY = {"context_length": 32, "stride": 32, "emb_dim": 32, "n_heads": 2, "n_layers": 2, "n_epochs": 1, "batch_size": 4}
TINY |= {"sample_freq": 0, "eval_freq": 1000, "max_new_tokens": 5, "max_corpus_bytes": 1 << 40}
SMALL_BYTES, SAMPLE_CHARACTERS = 100_000, 40_000_000
SECONDS = 60  # for which train and evaluate go on
FIRST_STEP = "(Iter 000000)"
# Runs a module as `python -m` does, and writes its peak resident memory: the kernel's own mark, which unlike ru_maxrss
# holds nothing of the process that started it.
_WATCHED = """
import atexit, pathlib, runpy, sys
def write():
    status = pathlib.Path("/proc/self/status").read_text()
    pathlib.Path(sys.argv[1]).write_text(status.split("VmHWM:")[1].split()[0])
atexit.register(write)
runpy.run_module(sys.argv[2], run_name="__main__")
"""


@dataclass(frozen=True)
class Ran:
    """How a stage ran. first_step_seconds: to the first step's line, None where there is none."""

    peak_mib: float
    seconds: float
    cpu_seconds: float
    first_step_seconds: float | None = None


def write_text(path: Path, num_bytes: int, *, seed: int = 123) -> None:
    """A text of at least num_bytes bytes and about 100 kB more at most, always the same.

    Its words are the bundled text's, as often as there, one in ten made up, one in fifty of other scripts.
    """
    stream = np.random.default_rng(seed)
    words = np.array(_vocabulary(stream), dtype=object)
    written = 0
    with path.open("wb") as file:
        while written < num_bytes:
            block = "".join(words[stream.integers(0, len(words), 20_000)].tolist()).encode()
            written += file.write(block)


def _vocabulary(stream: np.random.Generator) -> list[str]:
    """Words with what follows them, each as often as it is to be drawn."""
    book = [f"{word} " for word in TEXT.read_text("utf-8").split(" ") if word]
    sounds = ["ka", "lo", "mi", "ren", "sto", "vel", "thi", "an", "or", "dus", "pe", "qua"]
    made_up = ["".join(stream.choice(sounds, stream.integers(2, 5))).title() + " " for _ in range(len(book) // 10)]
    others = ["naïve ", "São ", "мир ", "слово, ", "漢字。", "東京、", "🙂 ", "٣٤ ", "“so” ", "x = 3.14;\n    ", "\n\n"]
    return book + made_up + others * (len(book) // 50 // len(others) + 1)


class Corpus:
    """A copy of the working tree with a text to run the stages on."""

    def __init__(self, folder: Path, num_bytes: int) -> None:
        self.folder = copy_workspace(folder)
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
        text = folder.with_name(f"{folder.name}.txt")
        write_text(text, num_bytes)
        self.num_bytes = text.stat().st_size
        self._set_params(corpus_url=text.as_uri(), corpus_sha256="", **TINY)

    def run(self, stage: str, *, seconds: float | None = None, cores: int | None = None) -> Ran:
        """Run a stage to its end, or for so many seconds after the first step or, where there is none, the start."""
        peak = self.folder.with_name("peak")
        peak.unlink(missing_ok=True)
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", _WATCHED, str(peak), f"stages.{stage}"],
            cwd=self.folder,
            env=self.env | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=_confine(cores),
        )
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        first = (
            next((time.monotonic() - started for line in lines if FIRST_STEP in line), None)
            if stage == "train"
            else None
        )
        if seconds is not None:
            time.sleep(seconds)
            process.send_signal(signal.SIGTERM)
        for _ in lines:
            pass
        _, status, used = os.wait4(process.pid, 0)
        code = process.returncode = os.waitstatus_to_exitcode(status)
        if code not in (0, 143):
            raise RuntimeError(f"{stage} ended with exit code {code}")
        return Ran(int(peak.read_text()) / 1024, time.monotonic() - started, used.ru_utime + used.ru_stime, first)

    def commit(self) -> None:
        """Put what fetch, split and tokenize made into DVC's cache, as `dvc repro` does after each."""
        dvc = str(Path(sys.executable).parent / "dvc")
        command = [dvc, "commit", "--force", "--quiet", "fetch", "split", "tokenize"]
        subprocess.run(command, cwd=self.folder, env=self.env, check=True)

    def first_step(self, seconds: float | None) -> Ran:
        """Run train from its beginning, whatever was trained before, for `seconds` after the first step."""
        shutil.rmtree(self.folder / ".reprogpt", ignore_errors=True)
        return self.run("train", seconds=seconds)

    def take_results(self, other: "Corpus") -> None:
        """Let evaluate and plot go on from another's training."""
        for name in ("model", "metrics"):
            shutil.copytree(other.folder / "data" / name, self.folder / "data" / name, dirs_exist_ok=True)

    def _set_params(self, **values: object) -> None:
        path = self.folder / "params.yaml"
        lines = path.read_text("utf-8").splitlines()
        kept = [line for line in lines if line.partition(":")[0] not in values]
        path.write_text("\n".join([*kept, *(f"{key}: {value!r}" for key, value in values.items())]) + "\n", "utf-8")


def _confine(cores: int | None) -> Callable[[], None] | None:
    """Let a child use so many of the cores that this process may use."""
    if cores is None:
        return None
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    return lambda: os.sched_setaffinity(0, chosen)


def tiktoken_rate(text: Path) -> tuple[float, float]:
    """Tokens a second, and a processor second, of tiktoken alone on one thread, on the beginning of a text.

    A million characters at a time: a longer list of tokens makes it slower.
    """
    encoding = load_encoding("gpt2")
    with text.open(encoding="utf-8", newline="") as file:
        samples = [file.read(1_000_000) for _ in range(SAMPLE_CHARACTERS // 1_000_000)]
    started, processor = time.perf_counter(), time.process_time()
    num_tokens = sum(len(encoding.encode_ordinary(sample)) for sample in samples)
    return num_tokens / (time.perf_counter() - started), num_tokens / (time.process_time() - processor)


def measure(folder: Path, num_bytes: int) -> None:
    """Measure everything, and print each table when it is known."""
    small, large = Corpus(folder / "small", SMALL_BYTES), Corpus(folder / "large", num_bytes)
    tenth = Corpus(folder / "tenth", num_bytes // 10)
    text = folder / "large.txt"
    _show(table(["", "this machine"], list(machine().items())), f"{large.num_bytes} bytes")
    ran = {stage: (small.run(stage), large.run(stage)) for stage in ("fetch", "split")}
    rates = [tiktoken_rate(text)]
    ran["tokenize"] = small.run("tokenize"), large.run("tokenize")
    rates.append(tiktoken_rate(text))
    for stage in ("fetch", "split"):
        tenth.run(stage)
    on_cores = {1: (tenth, tenth.run("tokenize", cores=1)), num_cpus(): (large, ran["tokenize"][1])}
    rates.append(tiktoken_rate(text))
    _show(_rate_table(on_cores, rates), _memory_table(ran))
    for corpus in (small, large):
        corpus.commit()
    small.run("train")  # to the end, which also makes MLflow's store
    large.take_results(small)
    large.first_step(0)
    starts = [(small.first_step(0), large.first_step(0)) for _ in range(3)]
    _show(_start_table(starts))
    ran["train"] = starts[0][0], large.first_step(SECONDS)
    small.first_step(None)
    for stage, seconds in (("evaluate", SECONDS), ("plot", None)):
        ran[stage] = small.run(stage), large.run(stage, seconds=seconds)
    _show(_memory_table(ran))


def _show(*texts: str) -> None:
    print("\n" + "\n\n".join(texts), flush=True)


def _memory_table(ran: dict[str, tuple[Ran, Ran]]) -> str:
    rows = [[stage, small.peak_mib, large.peak_mib, large.seconds] for stage, (small, large) in ran.items()]
    return table(["", "small text, MiB", "large text, MiB", "large text, seconds"], rows)


def _rate_table(on_cores: dict[int, tuple[Corpus, Ran]], rates: list[tuple[float, float]]) -> str:
    wall, processor = (statistics.median(rate[part] for rate in rates) for part in (0, 1))
    rows: list[list[object]] = [["tiktoken, one thread", "", wall / 1e6, 1.0, processor / 1e6, 1.0]]
    for cores, (corpus, ran) in on_cores.items():
        counts = read_json(corpus.folder / "data/metrics/tokens.json", needs="train_tokens", remedy="")
        num_tokens = counts["train_tokens"] + counts["val_tokens"]
        found = num_tokens / ran.seconds, num_tokens / ran.cpu_seconds
        name = f"tokenize, {cores} {'core' if cores == 1 else 'cores'}"
        rows.append([name, num_tokens, found[0] / 1e6, found[0] / wall / cores, found[1] / 1e6, found[1] / processor])
    header = [
        "",
        "tokens",
        "million tokens a second",
        "of tiktoken's, a core",
        "... a processor second",
        "of tiktoken's",
    ]
    return table(header, rows)


def _start_table(starts: list[tuple[Ran, Ran]]) -> str:
    names = "small text", "large text"
    rows = [[name, *(start[part].first_step_seconds or 0 for start in starts)] for part, name in enumerate(names)]
    return table(["seconds to the first step", "first", "second", "third"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, help="of text")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reprogpt-large-") as folder:
        measure(Path(folder), arguments.megabytes * 1_000_000)


if __name__ == "__main__":
    main()
