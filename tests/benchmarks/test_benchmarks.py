"""The benchmarks on a tiny configuration: they run, and count what they say they count."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import starting, steps, watching
from benchmarks.products import flops_of_a_step, seconds_of_products, weight_shapes
from benchmarks.report import table
from benchmarks.work import CONTENDERS, PHASES, read_params
from reprogpt.model.gpt import GPTConfig, GPTModel
from reprogpt.tracking.deliver import uploader
from reprogpt.tracking.deliver.outbox import open_outbox
from reprogpt.tracking.deliver.writer import upload
from tests.git import git
from tests.tracking.trainings import training_record
from tools import workspace

ROOT = Path(__file__).resolve().parents[2]
TINY = {"vocab_size": 101, "context_length": 16, "stride": 16, "emb_dim": 32, "n_heads": 2, "n_layers": 2}


@pytest.fixture(scope="module")
def params_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """params.yaml with a tiny model."""
    text = (ROOT / "params.yaml").read_text("utf-8")
    for key, value in {**TINY, "max_new_tokens": 3, "n_epochs": 1}.items():
        text, count = re.subn(rf"(?m)^{key}: \S+", f"{key}: {value}", text)
        assert count == 1
    path = tmp_path_factory.mktemp("tiny") / "params.yaml"
    path.write_text(text, "utf-8")
    return path


def test_operations_of_a_step_are_counted_by_hand(params_file: Path) -> None:
    """Weights: 2 x (4 x 32^2 + 2 x 4 x 32^2) + 101 x 32 = 27808; tokens: 2 x 16."""
    assert flops_of_a_step(read_params(params_file)) == 6 * 27808 * 32 + 12 * 2 * 2 * 16**2 * 32


def test_the_weights_counted_are_all_matrices_but_the_embeddings(params_file: Path) -> None:
    params = read_params(params_file)
    config = GPTConfig(**{key: getattr(params, key) for key in GPTConfig.__dataclass_fields__})
    shapes = [tuple(p.shape) for name, p in GPTModel(config).named_parameters() if p.dim() == 2 and "emb" not in name]
    assert {shape: shapes.count(shape) for shape in shapes} == weight_shapes(params)


def test_a_number_of_products_takes_longer_than_half_of_them(params_file: Path) -> None:
    params = read_params(params_file)
    double = params.model_copy(update={"batch_size": 128, "n_layers": 8})
    assert seconds_of_products(double, torch.float32) > 2 * seconds_of_products(params, torch.float32) > 0


def test_all_contenders_take_steps_and_are_compared(params_file: Path) -> None:
    results = steps.measure_steps(params_file, 2)
    assert list(results) == list(CONTENDERS)
    for found in results.values():
        assert all(found[name] > 0 for name in (*PHASES, "evaluation", "sample", "products", "peak_bytes"))
        assert sum(found[phase] for phase in PHASES) == pytest.approx(found["step"], rel=0.5)
    text = steps.tables(results, params_file)
    assert "| step, ms |" in text and "fraction of that limit" in text
    ratio = results["book"]["step"] / results["fp32"]["step"]
    assert f"| {ratio:.3g} |" in next(line for line in text.splitlines() if line.startswith("| step, ms"))


@pytest.fixture
def short_upload_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (watching, uploader):
        monkeypatch.setattr(module, "UPLOAD_INTERVAL", 0.2)


@pytest.mark.slow
def test_watching_is_measured_on_sqlite_and_on_a_server(short_upload_interval: None) -> None:
    rows = watching.measure_watching(0.01, seconds=0.1, many=30)
    assert [(row["store"], row["earlier"]) for row in rows] == [(s, n) for s in ("SQLite", "server") for n in (0, 30)]
    assert all(0 < row["waiting"] < row["processor"] for row in rows)


def test_the_clock_is_read_after_the_last_step_is_uploaded(
    short_upload_interval: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outbox = open_outbox("0" * 32)
    outbox.append(training_record("0"))
    upload(outbox)
    waiting: list[int] = []

    def read_clock() -> float:
        waiting.append(len(outbox.pending()))
        return 0.0

    clock = SimpleNamespace(process_time=read_clock, perf_counter=time.perf_counter, sleep=time.sleep)
    monkeypatch.setattr(watching, "time", clock)  # only in watching: other modules read this clock, too
    watching._pace(outbox, 0, 0.01, 0.1)
    assert waiting == [0, 0]


def test_stages_import_only_the_heavy_libraries_that_they_use() -> None:
    """The rule that the benchmark shows: torch and mlflow only where they are used."""
    for stage, wanted in {"fetch": set(), "split": set(), "tokenize": {"tiktoken"}}.items():
        assert set(starting._heavy_imports(f"import stages.{stage}")) == wanted, stage
    assert "torch" not in starting._heavy_imports("import stages.plot")


def test_a_copy_has_the_present_files_but_none_that_git_ignores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name, text in {".gitignore": "ignored", "edited": "old", "removed": "", "kept": "kept"}.items():
        (here / name).write_text(text, "utf-8")
    for command in (["init", "-q"], ["add", "--all"], ["commit", "-qm", "old"]):
        git(*command, folder=here)
    (here / "removed").unlink()
    for name in ("edited", "added", "ignored"):
        (here / name).write_text("new", "utf-8")
    monkeypatch.setattr(workspace, "ROOT", here)
    copy = workspace.copy_workspace(tmp_path / "copy")
    found = {path.name: path.read_text("utf-8") for path in copy.iterdir() if path.is_file()}
    assert found == {".gitignore": "ignored", "edited": "new", "added": "new", "kept": "kept"}


@pytest.mark.slow
def test_dvc_repro_is_measured_with_all_stages_up_to_date() -> None:
    seconds = starting.measure_nothing_to_do(1)
    assert list(seconds) == ["dvc status", "dvc repro"] and min(seconds.values()) > 0


def test_tokenising_is_measured_beside_tiktoken() -> None:
    rates = starting.measure_tokenising(1, num_chars=20_000)
    assert set(rates) == {"reprogpt", "tiktoken"} and min(rates.values()) > 1000


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(params_file: Path, tmp_path: Path) -> None:
    results, params = tmp_path / "results.json", tmp_path / "params.yaml"
    text = params_file.read_text("utf-8")
    params.write_text(re.sub(r"(?m)^vocab_size: \S+", "vocab_size: 50257", text), "utf-8")  # the bundled text's
    command = [sys.executable, "-m", "benchmarks", "whole", "--params", str(params), "--results", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(results.read_text("utf-8"))
    assert min(found["whole"].values()) > 0 and found["machine"]["torch"] == torch.__version__
    assert re.search(rf"\| {CONTENDERS[-1]} \| [\d.]+ \| [\d.]+ \|", done.stdout)


def test_peak_memory_is_the_programs_own_and_not_its_parents() -> None:
    allocated = bytearray(b"1") * (600 << 20)
    program = "from benchmarks.report import peak_bytes; print(peak_bytes())"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True, check=True)
    assert 10 << 20 < int(done.stdout) < len(allocated)


def test_a_table_shows_three_digits_and_whole_hundreds() -> None:
    assert table(["a", "b"], [["x", 1234.5], ["y", 0.012345]]).splitlines()[2:] == ["| x | 1234 |", "| y | 0.0123 |"]
