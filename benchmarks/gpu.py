"""A trial on a machine with a GPU: is it right, are its bits equal, how fast is it?

    python -m benchmarks.gpu check | bits | speed | head [--device cuda] [--tiny] [--out FOLDER]

Each part takes less than ten minutes, prints a table and writes FOLDER/gpu-PART.json. Only packages that training
imports are needed: no DVC, no MLflow, no network. `--device cpu --tiny` tries the script itself.

check: losses of every combination against fp32 on the CPU, and the fused head against float64; waits for the GPU.
bits: two processes, activation checkpointing, and a run that is killed and resumed: equal bits?
speed: steps beside the measured peak of a large product, and beside the loop of gpu_baseline.py.
head: kernels of which there is a choice, each alone: products, softmax, attention, copies.
"""

import argparse
import collections
import hashlib
import importlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_baseline import BaselineTraining
from benchmarks.products import flops_of_a_step
from benchmarks.report import ROOT, TEXT, table
from reprogpt.data.tokens import encode, load_encoding
from reprogpt.evaluation.losses import sum_losses
from reprogpt.model.generate import generate
from reprogpt.model.gpt2_format import load_model, save_model
from reprogpt.model.loss_head import head_loss
from reprogpt.numerics.device import Numerics, describe_device, set_up_numerics
from reprogpt.params.loader import read_mapping
from reprogpt.params.train import TrainParams
from reprogpt.process.stop import StopRequest
from reprogpt.training import build, loop
from reprogpt.training.batches import BatchLoader
from reprogpt.training.build import Training, training_from_ids
from reprogpt.training.resume import CheckpointedTraining
from reprogpt.training.run_dir import RunDirLock

Result = dict[str, Any]

PART_SECONDS = 560.0  # a part starts nothing new after that
TINY = {
    "emb_dim": 64,
    "n_heads": 2,
    "n_layers": 2,
    "context_length": 64,
    "stride": 64,
    "batch_size": 4,
    "vocab_size": 2048,
}
LONG = {"context_length": 1024, "stride": 1024}
STEPS = 30
WARMUP_STEPS = 6  # compiling, and the allocator's first steps


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0] if __doc__ else ""
    )
    parser.add_argument("part", choices=["check", "bits", "speed", "head", "run", "resume"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try this script on a CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu-trial"), help="folder of the JSON files")
    parser.add_argument("--only", nargs="*", default=[], metavar="ROW", help="of part speed: only these rows")
    parser.add_argument("--spec", type=json.loads, help="of parts run and resume, which the others start")
    arguments = parser.parse_args()
    if arguments.part == "run":
        print(json.dumps(run_steps(arguments.spec)), flush=True)
        return
    if arguments.part == "resume":
        train_with_checkpoints(arguments.spec)
        return
    trial = Trial(arguments.part, arguments.device, arguments.out, tiny=arguments.tiny)
    if arguments.part == "speed":
        speed(trial, arguments.only)
    else:
        {"check": check, "bits": bits, "head": head}[arguments.part](trial)


class Trial:
    """One part: runs specs in processes of their own, prints a line each and keeps the results in a JSON file."""

    def __init__(self, part: str, device: str, out: Path, *, tiny: bool) -> None:
        self.device = device
        self.tiny = tiny
        self._file = out / f"gpu-{part}.json"
        self._started = time.monotonic()
        self.results: dict[str, Result] = {}
        out.mkdir(parents=True, exist_ok=True)
        print(f"{part}: {describe_device(torch.device(device))}, torch {torch.__version__}", flush=True)

    def params(self, **changes: Any) -> dict[str, Any]:
        """Changes to params.yaml for a spec."""
        return {"device": self.device, **(TINY if self.tiny else {}), **changes}

    def run(self, name: str, params: dict[str, Any], shown: tuple[str, ...], **spec: Any) -> Result:
        """Run a spec in a process of its own; {} if there is no time left or it fails, which is printed."""
        left = PART_SECONDS - (time.monotonic() - self._started)
        if left < 20:
            print(f"{name:48} not run: no time left", flush=True)
            return {}
        spec = {"params": params, **spec}
        command = [sys.executable, "-m", "benchmarks.gpu", "run", "--spec", json.dumps(spec)]
        environment = os.environ | spec.get("environment", {})
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=min(left, 240)
            )
        except subprocess.TimeoutExpired:
            print(f"{name:48} took too long", flush=True)
            return {}
        if done.returncode:
            print(f"{name:48} failed: {done.stderr.strip().splitlines()[-1:]}\n{done.stderr[-1500:]}", flush=True)
            return {}
        result: Result = json.loads(done.stdout.splitlines()[-1])
        self.keep(name, result)
        print(f"{name:48} " + "  ".join(f"{key} {result[key]}" for key in shown if key in result), flush=True)
        return result

    def keep(self, name: str, result: Result) -> None:
        """Add a result to the JSON file."""
        self.results[name] = result
        self._file.write_text(json.dumps(self.results, indent=1), encoding="utf-8")


# ---------------------------------------------------------------- in a process of its own


def read_params(changes: dict[str, Any]) -> TrainParams:
    """params.yaml with changes, without evaluations and samples unless they are asked for."""
    values = read_mapping(ROOT / "params.yaml") | {"eval_freq": 0, "sample_freq": 0, "init_from": ""} | changes
    return TrainParams(**{key: values[key] for key in TrainParams.model_fields})


def token_ids(params: TrainParams, *, is_text: bool) -> np.ndarray:
    """Enough ids for many steps: the bundled text again and again, or random ones."""
    num_ids = max(40_000, 40 * params.batch_size * params.context_length)
    if not is_text:
        return np.random.default_rng(1).integers(0, params.vocab_size, num_ids, dtype=np.uint16)
    ids = encode(load_encoding("gpt2"), TEXT.read_text("utf-8")) % params.vocab_size
    return np.tile(ids, -(-num_ids // len(ids)))[:num_ids]


def make_training(params: TrainParams, *, is_text: bool, total_steps: int | None = None) -> Training:
    """A training whose clipping begins after a few steps. total_steps: instead of those of its epochs."""
    numerics = set_up_numerics(**params.arithmetic())
    ids = token_ids(params, is_text=is_text)
    training = training_from_ids(ids, ids, prompt=[1, 2, 3], params=params, numerics=numerics)
    starts = {"warmup_steps": 5, "decay_start": 5, "first_clipped_step": 5}
    plan = replace(training.plan, **starts, total_steps=total_steps or training.plan.total_steps)
    training.plan = plan
    training.loader = BatchLoader(
        training.train_rows,
        training.randomness,
        plan,
        batch_size=params.batch_size,
        shard=training.group.shard,
        device=numerics.device,
    )
    return training


def run_steps(spec: Result) -> Result:
    """Train some steps as the spec says: losses, a digest of the weights, times and memory."""
    params = read_params(spec["params"])
    if "max_cuda_graph_tokens" in spec:
        build.MAX_CUDA_GRAPH_TOKENS = spec["max_cuda_graph_tokens"]
    if spec.get("contender") == "baseline":
        return run_baseline(params, spec.get("steps", STEPS))
    training = make_training(params, is_text=spec.get("is_text", True))
    device = training.numerics.device
    num_steps = spec.get("steps", STEPS)
    pending = []
    host_seconds = []
    waits: collections.Counter[str] = collections.Counter()
    started = time.perf_counter()
    for index in range(num_steps):
        if index == WARMUP_STEPS:
            synchronize(device)
            started = time.perf_counter()
        step_started = time.perf_counter()
        with record_waits(waits) if spec.get("waits") and index >= num_steps - 2 else nullcontext():
            pending.append(loop._run_step(training))
        host_seconds.append(time.perf_counter() - step_started)
        training.step += 1
    synchronize(device)
    seconds = (time.perf_counter() - started) / max(1, num_steps - WARMUP_STEPS)
    result = timings(params, seconds, device)
    result["host_ms"] = round(1000 * statistics.median(host_seconds[WARMUP_STEPS:] or host_seconds), 2)
    result["losses"] = [record.loss for record in loop._fetch_records(training, pending)]
    result["weights"] = weights_digest(training)
    if spec.get("waits"):
        result["waits_in_2_steps"] = dict(waits)
    if spec.get("profile") and device.type == "cuda":
        result["profile"] = profile(training)
    if spec.get("finish"):
        result |= finish(training)
    return result


def run_baseline(params: TrainParams, num_steps: int) -> Result:
    """The same steps by gpu_baseline.py."""
    device = torch.device(params.device)
    torch.set_float32_matmul_precision("high" if params.precision == "tf32" else "highest")
    training = BaselineTraining(params, device, compiled=params.compile)
    ids = torch.from_numpy(token_ids(params, is_text=False).astype(np.int64))
    size = params.batch_size * params.context_length
    started = time.perf_counter()
    for index in range(num_steps):
        if index == WARMUP_STEPS:
            synchronize(device)
            started = time.perf_counter()
        start = index % 30 * size
        rows = ids[start : start + size + 1]
        if device.type == "cuda":
            rows = rows.pin_memory()
        rows = rows.to(device, non_blocking=True)
        shape = (params.batch_size, params.context_length)
        loss = training.step(rows[:-1].view(shape), rows[1:].view(shape))
    synchronize(device)
    seconds = (time.perf_counter() - started) / max(1, num_steps - WARMUP_STEPS)
    return timings(params, seconds, device) | {"loss": loss.item()}


def timings(params: TrainParams, seconds: float, device: torch.device) -> Result:
    tokens = params.batch_size * params.context_length
    result: Result = {
        "step_ms": round(1000 * seconds, 3),
        "tokens_per_second": round(tokens / seconds),
        "tflops": round(flops_of_a_step(params) / seconds / 1e12, 1),
    }
    if device.type == "cuda":
        result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return result


def weights_digest(training: Training) -> str:
    whole = hashlib.sha256()
    for name, tensor in training.model.state_dict().items():
        whole.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return whole.hexdigest()[:16]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def record_waits(waits: collections.Counter[str]) -> Iterator[None]:
    """Count the places of the package where the host waits for the GPU."""

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if "synchronizing CUDA operation" in str(message):
            frames = [frame for frame in traceback.extract_stack() if "reprogpt" in frame.filename]
            waits["; ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-2:])] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")


KINDS = {
    "copies": ("memcpy", "memset"),
    "attention": ("flash", "fmha", "attention", "cudnn_generated"),
    "products": ("gemm", "cutlass", "cublas", "nvjet", "xmma", "wgmma"),
    "optimizer": ("adam", "multi_tensor", "foreach"),
    "compiled": ("triton_",),
}


def profile(training: Training) -> Result:
    """Milliseconds of the GPU in three steps, by kind of kernel, and the ten longest kernels."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(3):
            loop._run_step(training)
            training.step += 1
        torch.cuda.synchronize()
    seconds: collections.Counter[str] = collections.Counter()
    by_name: collections.Counter[str] = collections.Counter()
    num_kernels = 0
    for event in profiler.events():
        name = event.name.lower()
        is_kernel = str(event.device_type).endswith("CUDA") and not name.startswith(
            ("optimizer", "## call", "torch-comp")
        )
        if not is_kernel or getattr(event, "is_user_annotation", False):
            continue
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")
        seconds[kind] += event.time_range.elapsed_us()
        by_name[event.name[:90]] += event.time_range.elapsed_us()
        num_kernels += 1
    return {
        "kernels_a_step": round(num_kernels / 3),
        "busy_ms": round(sum(seconds.values()) / 3000, 2),
        "ms_by_kind": {kind: round(us / 3000, 2) for kind, us in seconds.most_common()},
        "longest_ms": {name: round(us / 3000, 3) for name, us in by_name.most_common(14)},
    }


def finish(training: Training) -> Result:
    """Evaluate, sample, save and load on the device; the loss there and on the CPU."""
    numerics = training.numerics
    with numerics.autocast():
        sample = list(generate(training.model, training.prompt, 8))
    result: Result = {"sample": sample}
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), training.model)
        model = load_model(Path(folder))
    rows = training.val_rows.take(slice(2))
    cpu = Numerics(torch.device("cpu"), "fp32", "torch")
    on_device = sum_losses(training.model, rows.inputs, rows.targets, batch_size=2, numerics=numerics)
    on_cpu = sum_losses(model, rows.inputs, rows.targets, batch_size=2, numerics=cpu)
    return result | {"loss_on_device": on_device.loss, "loss_on_cpu": on_cpu.loss}


# ---------------------------------------------------------------- the parts


def check(trial: Trial) -> None:
    """Losses of ten steps without dropout, everywhere the same up to rounding; places at which the host waits."""
    check_head(trial)
    small = {"emb_dim": 256, "n_heads": 4, "n_layers": 4, "context_length": 128, "stride": 128, "batch_size": 8}
    base = trial.params(**({} if trial.tiny else small), drop_rate=0.0)
    cpu = base | {"device": "cpu", "matmul": "torch"}
    on_cpu = {
        random_order: trial.run(
            f"fp32 on the CPU, {random_order}", cpu | {"random_order": random_order}, ("step_ms",), steps=10
        )
        for random_order in ("independent", "book")  # each reads its rows in an order of its own
    }
    variants: dict[str, dict[str, Any]] = {
        "fp32": {},
        "tf32": {"precision": "tf32"},
        "bf16": {"precision": "bf16"},
        "fp32, accumulate 4": {"accumulate": 4},
        "fp32, activation checkpointing": {"activation_checkpointing": True},
        "fp32, book": {"random_order": "book", "matmul": "torch"},
        "bf16, compile": {"precision": "bf16", "compile": True},
        "bf16, compile, activation checkpointing": {
            "precision": "bf16",
            "compile": True,
            "activation_checkpointing": True,
        },
    }
    if trial.device == "cpu":
        variants = {name: more for name, more in variants.items() if "tf32" not in name and "compile" not in name}
    for name, more in variants.items():
        shown = ("step_ms", "loss_on_device", "loss_on_cpu", "waits_in_2_steps")
        found = trial.run(name, base | more, shown, steps=10, finish=True, waits=True)
        wanted = on_cpu[more.get("random_order", "independent")]
        if found and wanted:
            difference = max(abs(a - b) for a, b in zip(found["losses"], wanted["losses"], strict=True))
            found["largest_difference"] = difference
            trial.keep(name, found)
            print(f"    largest difference of a loss from the CPU's: {difference:.1e}", flush=True)


def check_head(trial: Trial) -> None:
    """Loss and gradients of the fused head against float64 on the CPU: the largest relative errors."""
    rows = []
    for vocab_size in (1000, 5003 if trial.tiny else 50257):
        torch.manual_seed(0)
        hidden, weight = torch.randn(300, 64), torch.randn(vocab_size, 64) / 8
        targets = torch.randint(0, vocab_size, (300,))
        exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
        wanted = functional.cross_entropy(exact[0] @ exact[1].T, targets)
        torch.autograd.backward(wanted)
        for in_bf16 in (False, True):
            our_hidden = hidden.clone().to(trial.device).requires_grad_()
            our_weight = weight.clone().to(trial.device).requires_grad_()
            with torch.autocast(torch.device(trial.device).type, torch.bfloat16, enabled=in_bf16):
                loss = head_loss(our_hidden, our_weight, targets.to(trial.device))
            torch.autograd.backward(loss)
            errors = [abs(loss.item() - wanted.item()) / wanted.item()]
            for got, want in zip((our_hidden, our_weight), exact, strict=True):
                assert got.grad is not None and want.grad is not None
                difference = got.grad.cpu().double() - want.grad
                errors.append(float(difference.norm() / want.grad.norm()))
            rows.append([vocab_size, "bf16" if in_bf16 else "fp32", *(f"{error:.1e}" for error in errors)])
    trial.keep("head", {"rows": rows})
    print(table(["vocabulary", "products", "loss", "gradient of hidden", "gradient of weight"], rows), flush=True)


def bits(trial: Trial) -> None:
    """Equal bits of two processes with compilers whose caches are empty, and of a run that is killed and resumed."""
    small = {"emb_dim": 256, "n_heads": 4, "n_layers": 4, "context_length": 256, "stride": 256, "batch_size": 8}
    base = trial.params(**({} if trial.tiny else small))
    variants: dict[str, dict[str, Any]] = {
        "fp32": {},
        "bf16": {"precision": "bf16"},
        "bf16, activation checkpointing": {"precision": "bf16", "activation_checkpointing": True},
        "fp32, book": {"random_order": "book", "matmul": "torch"},
        "bf16, compile": {"precision": "bf16", "compile": True},
    }
    if trial.device == "cpu":
        del variants["bf16, compile"]
    digests: dict[str, list[Any]] = {}
    for name, more in variants.items():
        digests[name] = []
        for process in ("first", "second"):
            with tempfile.TemporaryDirectory() as cache:
                environment = {"TORCHINDUCTOR_CACHE_DIR": cache}
                found = trial.run(
                    f"{name}: {process} process", base | more, ("weights", "step_ms"), environment=environment
                )
            digests[name].append(found.get("weights"))
        is_equal = None not in digests[name] and len(set(digests[name])) == 1
        trial.keep(f"{name}: equal", {"is_equal": is_equal})
        print(f"    {name}: {'EQUAL BITS' if is_equal else 'NOT EQUAL'}", flush=True)
    same = digests["bf16"] == digests["bf16, activation checkpointing"]
    print(f"    activation checkpointing changes no bit: {same}", flush=True)
    for name in ("fp32", "fp32, book", *([] if trial.device == "cpu" else ["bf16, compile"])):
        is_equal = kill_and_resume(base | variants[name])
        trial.keep(f"{name}: killed and resumed", {"is_equal": is_equal})
        print(f"    {name}: killed twice and resumed: {'EQUAL BITS' if is_equal else 'NOT EQUAL'}", flush=True)


def kill_and_resume(params: dict[str, Any]) -> bool:
    """Whether a training that is killed twice ends as one that is not."""
    ends = []
    for num_kills in (0, 2):
        folder = Path(tempfile.mkdtemp())
        spec = {"params": params | {"save_seconds": 0.001, "eval_freq": 5}, "folder": str(folder)}
        command = [sys.executable, "-m", "benchmarks.gpu", "resume", "--spec", json.dumps(spec)]
        for attempt in range(num_kills + 1):
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            last = ""
            for line in process.stdout:
                last = line
                if (
                    attempt < num_kills
                    and line.startswith(f"step {16 * (attempt + 1)} ")
                    and list(folder.glob("*.json"))
                ):
                    process.send_signal(signal.SIGKILL)
                    break
            process.wait()
        ends.append(last)
        shutil.rmtree(folder)
    return ends[0].startswith("end") and ends[0] == ends[1]


def train_with_checkpoints(spec: Result) -> None:
    """Train 48 steps with a checkpoint after nearly every step; print each step, and the weights at the end."""
    training = make_training(read_params(spec["params"]), is_text=True, total_steps=48)
    training.log_interval = 4
    run_dir_lock = RunDirLock("0" * 32, Path(spec["folder"]), {"workspace": False})
    checkpointed = CheckpointedTraining(training, run_dir_lock)
    for record in checkpointed.run_until(StopRequest()):
        print(f"step {record.step} {record.loss!r}", flush=True)
        time.sleep(0.02)
    print(f"end {weights_digest(training)} {[record.loss for record in checkpointed.records]}", flush=True)


def speed(trial: Trial, only: list[str]) -> None:
    """Tokens per second and model FLOPs, beside the baseline's and the measured peak."""
    matrix_size = 512 if trial.tiny else 8192
    peak = measure_peak(torch.device(trial.device), matrix_size)
    trial.keep("peak", {"tflops": peak})
    print(f"a product of {matrix_size} x {matrix_size} x {matrix_size} in bf16: {peak:.3g} TFLOP/s", flush=True)
    long = trial.params(**({} if trial.tiny else LONG), precision="bf16", compile=trial.device != "cpu")
    size = 4 if trial.tiny else 32
    shown = ("step_ms", "host_ms", "tokens_per_second", "tflops", "peak_gib")
    rows: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "1024, baseline": (long | {"batch_size": size}, {"contender": "baseline"}),
        "1024": (long | {"batch_size": size}, {"profile": True}),
        "1024, without CUDA graphs": (long | {"batch_size": size}, {"max_cuda_graph_tokens": 0}),
        "1024, baseline, no dropout": (long | {"batch_size": size, "drop_rate": 0.0}, {"contender": "baseline"}),
        "1024, no dropout": (long | {"batch_size": size, "drop_rate": 0.0}, {"profile": True}),
        "1024, batch 64, no dropout": (long | {"batch_size": 2 * size, "drop_rate": 0.0}, {}),
        "1024, batch 64, baseline, no dropout": (
            long | {"batch_size": 2 * size, "drop_rate": 0.0},
            {"contender": "baseline"},
        ),
        "1024, eager": (long | {"batch_size": size, "compile": False}, {"profile": True}),
        "default": (trial.params(), {"steps": 60, "profile": True}),
        "default, bf16": (trial.params(precision="bf16"), {"steps": 60}),
        "default, tf32, compile": (trial.params(precision="tf32", compile=True), {"steps": 60, "profile": True}),
        "default, bf16, compile": (trial.params(precision="bf16", compile=True), {"steps": 60, "profile": True}),
        "default, bf16, compile, baseline": (
            trial.params(precision="bf16", compile=True),
            {"steps": 60, "contender": "baseline"},
        ),
        "1024, activation checkpointing": (long | {"batch_size": size, "activation_checkpointing": True}, {}),
    }
    for name, (params, spec) in rows.items():
        needs_gpu = params.get("compile") or params.get("precision") == "tf32"
        if (name in only or not only) and not (needs_gpu and trial.device == "cpu"):
            found = trial.run(name, params, shown, is_text=False, **spec)
            if found:
                found["of_peak"] = round(found["tflops"] / peak, 3)
                trial.keep(name, found)
                print(f"    {found['of_peak']:.1%} of the peak; {found.get('profile', '')}", flush=True)


def measure_peak(device: torch.device, size: int) -> float:
    """TFLOP/s of a large square product of random numbers in bf16."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = time_of(lambda: left @ right, device, rounds=20)
    return 2 * size**3 / seconds / 1e12


def time_of(work: Callable[[], object], device: torch.device, rounds: int = 10) -> float:
    """Median seconds of a call."""
    for _ in range(3):
        work()
    times = []
    for _ in range(rounds):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def head(trial: Trial) -> None:
    """Kernels of which there is a choice, each alone."""
    device = set_up_numerics(device=trial.device, precision="fp32", matmul="auto").device
    kernels = Kernels(device)
    measure_products(kernels, tiny=trial.tiny)
    measure_heads(kernels, tiny=trial.tiny)
    measure_attention(kernels, tiny=trial.tiny)
    trial.keep("kernels", {"rows": kernels.rows})
    print(table(["kernel", "ms", "TFLOP/s", "peak memory"], kernels.rows), flush=True)


class Kernels:
    """A table of kernels: name, milliseconds, TFLOP/s, peak memory on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rows: list[list[object]] = []

    def measure(self, name: str, work: Callable[[], object], flops: float) -> None:
        """Add a row; of a kernel that this device does not have, with the message instead."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            seconds = time_of(work, self.device)
        except RuntimeError as error:
            self.rows.append([name, str(error).splitlines()[0][:70], "", ""])
            return
        peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if self.device.type == "cuda" else ""
        self.rows.append([name, 1000 * seconds, flops / seconds / 1e12, peak])

    def random(self, *shape: int) -> torch.Tensor:
        """Random numbers in bf16."""
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16)


def head_shape(*, tiny: bool) -> tuple[int, int, int]:
    """Tokens of a batch, width of the model, size of the vocabulary."""
    return (512, 64, 1009) if tiny else (32768, 768, 50257)


def measure_products(kernels: Kernels, *, tiny: bool) -> None:
    """The head's three products, with GPT-2's odd vocabulary and with a padded one."""
    num_tokens, width, vocab_size = head_shape(tiny=tiny)
    hidden = kernels.random(num_tokens, width)
    for name, size in (("odd vocabulary", vocab_size), ("padded vocabulary", -(-vocab_size // 128) * 128)):
        weight = kernels.random(size, width)
        grad = kernels.random(num_tokens, size)
        flops = 2.0 * num_tokens * size * width
        kernels.measure(f"{name}: logits", partial(torch.mm, hidden, weight.T), flops)
        kernels.measure(f"{name}: gradient of hidden", partial(torch.mm, grad, weight), flops)
        kernels.measure(f"{name}: gradient of weight", partial(torch.mm, grad.T, hidden), flops)


def separate_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What head_loss computes, as separate operations."""
    return functional.cross_entropy(functional.linear(hidden, weight), targets)


def heads(device: torch.device) -> dict[str, Callable[..., torch.Tensor]]:
    """Functions that compute the same loss, by name."""
    found: dict[str, Callable[..., torch.Tensor]] = {"cross_entropy(linear)": separate_loss, "head_loss": head_loss}
    if device.type != "cuda":
        return found
    found["head_loss, compiled"] = partial(head_loss, compiled=True)
    found["cross_entropy(linear), compiled"] = torch.compile(separate_loss)
    try:
        liger = importlib.import_module("liger_kernel.ops.fused_linear_cross_entropy")
    except ImportError:
        print("(without liger_kernel, which is not installed)")
        return found

    def liger_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        function = liger.LigerFusedLinearCrossEntropyFunction
        loss: torch.Tensor = function.apply(hidden.bfloat16(), weight.bfloat16(), targets)[0]
        return loss

    return found | {"Liger kernel": liger_loss}


def measure_heads(kernels: Kernels, *, tiny: bool) -> None:
    """Output head and cross-entropy, forward and backward."""
    num_tokens, width, vocab_size = head_shape(tiny=tiny)
    device = kernels.device
    hidden = torch.randn(num_tokens, width, device=device, requires_grad=True)
    weight = torch.randn(vocab_size, width, device=device, requires_grad=True)
    targets = torch.randint(0, vocab_size, (num_tokens,), device=device)

    def forward_and_backward(loss_of: Callable[..., torch.Tensor]) -> None:
        hidden.grad = weight.grad = None
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(hidden, weight, targets)
        torch.autograd.backward(loss)

    flops = 6.0 * num_tokens * vocab_size * width
    for name, loss_of in heads(device).items():
        kernels.measure(f"head, forward and backward: {name}", partial(forward_and_backward, loss_of), flops)


def measure_attention(kernels: Kernels, *, tiny: bool) -> None:
    """Each of torch's attention kernels, forward and backward, with and without dropout."""
    batch, num_heads, length = (2, 2, 64) if tiny else (32, 12, 1024)
    shape = (batch, length, num_heads, 64)
    query, key, value = (kernels.random(*shape).transpose(1, 2).requires_grad_() for _ in range(3))
    flops = 3.5 * 4.0 * batch * num_heads * length * length * 64 / 2

    def attend(backend: SDPBackend, rate: float) -> None:
        with sdpa_kernel(backend):
            out = functional.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True)
        torch.autograd.backward(out, torch.ones_like(out))

    backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    for is_deterministic, backend, rate in itertools.product((True, False), backends, (0.0, 0.1)):
        torch.use_deterministic_algorithms(is_deterministic)
        label = "deterministic" if is_deterministic else "not deterministic"
        name = f"attention {backend.name}, dropout {rate}, {label}"
        kernels.measure(name, partial(attend, backend, rate), flops)
    torch.use_deterministic_algorithms(True)


if __name__ == "__main__":
    main()
