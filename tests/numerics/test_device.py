"""Device, precision and matmul backend; what is said about the device and its memory."""

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from reprogpt.errors import DeviceError, OutOfMemoryError
from reprogpt.numerics import device
from reprogpt.numerics.device import (
    CUBLAS_VARIABLE,
    FP32_TOLERANCE,
    Numerics,
    announce_device,
    matmul_error,
    out_of_memory_advice,
    set_up_numerics,
    temporary_numerics,
)
from reprogpt.process.run import run_program
from stages import train as train_stage
from tests.tiny import PARAMS


@pytest.fixture(autouse=True)
def matmul_setting_restored() -> Iterator[None]:
    """Restore the matmul backends. Deterministic algorithms stay on: no test may need others."""
    before, cuda_before = matmul_setting(), torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = cuda_before


def matmul_setting() -> str:
    """What routes fp32 products: "bf16" to oneDNN, "none" to torch's own library."""
    return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


def on_cpu(matmul: str = "torch", precision: str = "fp32") -> Numerics:
    return set_up_numerics(device="cpu", precision=precision, matmul=matmul)


def product() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(256, 768, generator=generator), torch.randn(768, 512, generator=generator)
    return left @ right


def set_processor(monkeypatch: pytest.MonkeyPatch, vendor: str, capability: str) -> None:
    monkeypatch.setattr(device, "cpu_info", {"vendor_id": vendor}.get)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)


def test_what_was_chosen_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_fast_bf16", lambda: True)
    assert on_cpu("torch", "bf16") == Numerics(torch.device("cpu"), "bf16", "torch")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_an_absent_device_is_refused_with_what_there_is(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(
        DeviceError, match=rf"device: {device} is not available on this machine \(found: cpu\); set device to one"
    ):
        set_up_numerics(device=device, precision="fp32", matmul="auto")


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_takes_the_first_available_device(
    cuda: bool, mps: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    found = set_up_numerics(device="auto", precision="fp32", matmul="torch")
    assert (found.device.type, found.matmul) == (chosen, "torch")


def test_onednn_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DeviceError, match="matmul: onednn is for the CPU; on device cuda use auto or torch"):
        set_up_numerics(device="cuda", precision="fp32", matmul="onednn")


def test_operations_without_a_deterministic_implementation_are_refused() -> None:
    torch.use_deterministic_algorithms(False)
    on_cpu()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def test_torchs_matrix_products_are_true_fp32() -> None:
    on_cpu("torch")
    assert 0 < matmul_error() < FP32_TOLERANCE / 2


def test_matmul_error_detects_rounding_to_bf16() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert matmul_error() > 10 * FP32_TOLERANCE


def products_by_torch_and_onednn() -> tuple[torch.Tensor, torch.Tensor]:
    on_cpu("torch")
    torchs = product()
    try:
        chosen = on_cpu("onednn")
    except DeviceError as error:
        pytest.skip(f"no exact oneDNN on this processor: {error}")
    assert chosen.matmul == "onednn"
    return torchs, product()


def test_onednn_and_torch_products_agree() -> None:
    torchs, onednns = products_by_torch_and_onednn()
    assert (onednns - torchs).abs().max() <= FP32_TOLERANCE * torchs.abs().max()
    assert on_cpu("torch").matmul == "torch"
    assert torch.equal(product(), torchs)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="torch uses oneDNN's fp32 products only with AVX-512"
)
def test_onednn_and_torch_products_are_not_the_same() -> None:
    torchs, onednns = products_by_torch_and_onednn()
    assert not torch.equal(onednns, torchs)


@pytest.mark.parametrize(
    ("vendor", "capability", "chosen"),
    [
        ("AuthenticAMD", "AVX512", "onednn"),
        ("AuthenticAMD", "AVX2", "torch"),
        ("GenuineIntel", "AVX512", "torch"),
        ("", "DEFAULT", "torch"),
    ],
)
def test_auto_is_a_rule_on_the_processor(
    vendor: str, capability: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_processor(monkeypatch, vendor, capability)
    monkeypatch.setattr(device, "matmul_error", lambda: 0.0)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert on_cpu("auto").matmul == chosen
    assert matmul_setting() == {"onednn": "bf16", "torch": "none"}[chosen]


def test_auto_falls_back_with_a_message_where_onednn_is_inexact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_processor(monkeypatch, "AuthenticAMD", "AVX512")
    monkeypatch.setattr(device, "matmul_error", lambda: 0.003)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert on_cpu("auto").matmul == "torch"
    assert matmul_setting() == "none"
    written = capsys.readouterr()
    assert written.out == ""
    assert (
        written.err == "matmul: torch, since oneDNN's matrix products have an error of 3.0e-03 here (allowed: 1e-05)\n"
    )


def test_onednn_is_refused_where_it_is_inexact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "matmul_error", lambda: 0.003)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    with pytest.raises(DeviceError, match=r"matmul: onednn is refused, since .* error of 3\.0e-03.*use auto or torch"):
        on_cpu("onednn")
    assert matmul_setting() == "none"


def test_onednn_is_refused_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="matmul: onednn is not built into this torch; use auto or torch"):
        on_cpu("onednn")


def test_the_error_is_measured_with_onednn_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    measured_under: list[str] = []

    def recording() -> float:
        measured_under.append(matmul_setting())
        return 0.0

    monkeypatch.setattr(device, "matmul_error", recording)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    on_cpu("onednn")
    assert measured_under == ["bf16"]


@pytest.mark.parametrize(
    ("machine", "is_fast", "is_refused"), [("x86_64", False, True), ("x86_64", True, False), ("arm64", False, False)]
)
def test_bf16_is_refused_on_a_processor_that_lacks_it(
    machine: str, is_fast: bool, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(device, "has_fast_bf16", lambda: is_fast)
    if is_refused:
        with pytest.raises(DeviceError, match=r"bf16 takes more than 20 times .*; use precision: fp32$"):
            on_cpu(precision="bf16")
    else:
        assert on_cpu(precision="bf16").precision == "bf16"


# numerics: auto

AUTO: dict[str, Any] = {"device": "auto", "precision": "fp32", "matmul": "auto", "numerics": "auto"}


@pytest.fixture
def portable_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without a GPU on which portable numerics are possible; making this process portable can't be undone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr("reprogpt.numerics.env_vars.supports_portable", lambda: True)
    monkeypatch.setattr(device, "are_env_vars_in_effect", lambda: True)
    monkeypatch.setattr(device, "make_portable", lambda: None)


def test_auto_is_portable_where_that_is_possible(portable_machine: None, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = set_up_numerics(**AUTO)
    assert (chosen.device.type, chosen.matmul) == ("cpu", "portable")
    announce_device(chosen)
    assert "\nnumerics: portable (auto), since this is Linux on x86-64 with AVX2 and FMA\n" in capsys.readouterr().err
    assert device.chooses_portable(AUTO | {"nproc_per_node": 1})


@pytest.mark.parametrize(("key", "value"), [("precision", "bf16"), ("matmul", "torch"), ("nproc_per_node", 2)])
def test_auto_is_native_for_other_arithmetic(
    key: str, value: str | int, portable_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "has_fast_bf16", lambda: True)
    chosen = set_up_numerics(**AUTO | {key: value})
    assert chosen.matmul in ("torch", "onednn")
    assert chosen.choice == f"numerics: native (auto), since {key} is {value}"
    assert not device.chooses_portable(AUTO | {key: value})


def test_auto_is_native_on_a_gpu_that_is_found(portable_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = set_up_numerics(**AUTO)
    assert (chosen.device.type, chosen.choice) == ("cuda", "numerics: native (auto), since device: auto found cuda")
    assert set_up_numerics(**AUTO | {"device": "cpu"}).matmul == "portable"
    assert not device.chooses_portable(AUTO)


def test_auto_is_native_where_torch_was_loaded_too_early(
    portable_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "are_env_vars_in_effect", lambda: False)
    assert "since torch was loaded before the variables" in set_up_numerics(**AUTO).choice


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_is_on_for_bf16_only(precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_fast_bf16", lambda: True)
    with on_cpu(precision=precision).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


# a GPU


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """An NVIDIA GPU of 80 GiB, of which 3 are free and 70.5 hold tensors, as torch would describe it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 << 30))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: int(70.5 * 2**30))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("version", "is_refused"), [("2.9.1", True), ("2.12.1+cpu", True), ("2.13.0", False), ("3.0.0a0+git1", False)]
)
def test_mps_needs_a_torch_whose_optimizer_clips(
    version: str, is_refused: bool, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "__version__", version)
    if not is_refused:
        assert set_up_numerics(device="auto", precision="fp32", matmul="auto").device.type == "mps"
        return
    for name in ("auto", "mps"):
        with pytest.raises(DeviceError, match=rf"mps needs torch 2\.13 or newer \(found: {version[:4]}.*to cpu$"):
            set_up_numerics(device=name, precision="fp32", matmul="auto")
    assert set_up_numerics(device="cpu", precision="fp32", matmul="torch").device.type == "cpu"


@pytest.mark.parametrize("name", ["cpu", "mps"])
def test_tf32_is_for_cuda(name: str, no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(DeviceError, match=f"^precision: tf32 is for an NVIDIA GPU; on device {name} use fp32 or bf16$"):
        set_up_numerics(device=name, precision="tf32", matmul="auto")


@pytest.mark.parametrize(
    ("precision", "setting", "matmul"), [("tf32", "tf32", "tf32"), ("fp32", "ieee", "torch"), ("bf16", "ieee", "torch")]
)
def test_on_cuda_products_round_to_tf32_only_if_they_are_asked_to(
    precision: str, setting: str, matmul: str, cuda: None
) -> None:
    numerics = set_up_numerics(device="auto", precision=precision, matmul="auto")
    assert (numerics.device.type, numerics.precision, numerics.matmul) == ("cuda", precision, matmul)
    assert torch.backends.cuda.matmul.fp32_precision == setting


def torch_settings() -> list[object]:
    """All of torch's global settings that set_up_numerics changes, and one that torch refuses if they don't fit."""
    return [
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        matmul_setting(),
        torch.backends.cuda.matmul.fp32_precision,
        torch.get_float32_matmul_precision(),
        os.environ.get(CUBLAS_VARIABLE),
    ]


@pytest.mark.parametrize("variable", [None, ":16:8"])
@pytest.mark.parametrize(("precision", "matmul"), [("fp32", "auto"), ("tf32", "auto")])
def test_temporary_numerics_leave_torchs_settings_as_they_were(
    variable: str | None, precision: str, matmul: str, cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CUBLAS_VARIABLE, "")  # so that monkeypatch restores it
    monkeypatch.delenv(CUBLAS_VARIABLE)
    if variable is not None:
        monkeypatch.setenv(CUBLAS_VARIABLE, variable)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    before = torch_settings()
    try:
        with temporary_numerics(device="cuda", precision=precision, matmul=matmul) as numerics:
            assert numerics.device.type == "cuda"
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert os.environ[CUBLAS_VARIABLE] == (variable or ":4096:8")
        assert torch_settings() == before
        with pytest.raises(ZeroDivisionError), temporary_numerics(device="cpu", precision="fp32", matmul="torch"):
            1 / 0  # noqa: B018
        assert torch_settings() == before
    finally:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def test_the_gpu_is_announced_with_its_name_and_memory(cuda: None, capsys: pytest.CaptureFixture[str]) -> None:
    announce_device(Numerics(torch.device("cuda"), "fp32", "torch"))
    assert capsys.readouterr() == ("", "device: cuda, NVIDIA H100, 80 GiB\n")


def test_mps_is_announced_with_its_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 24 << 30)
    announce_device(Numerics(torch.device("mps"), "fp32", "torch"))
    assert capsys.readouterr().err.endswith(", 24 GiB\n")


def test_the_cpu_is_announced_with_its_name_and_threads(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "cpu_info", {"model name": "Processor 9"}.get)
    monkeypatch.setattr(device, "_has_nvidia_gpu", lambda: False)
    announce_device(Numerics(torch.device("cpu"), "fp32", "torch"))
    assert capsys.readouterr() == ("", f"device: cpu, Processor 9, {torch.get_num_threads()} threads\n")


@pytest.mark.parametrize(("version", "built"), [(None, "without CUDA"), ("13.0", "for CUDA 13.0")])
def test_an_nvidia_gpu_that_torch_cannot_use_is_warned_of(
    version: str | None, built: str, no_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "_has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", version)
    announce_device(Numerics(torch.device("cpu"), "fp32", "torch"))
    written = capsys.readouterr().err
    assert "WARNING: this machine has an NVIDIA GPU that is not used: " in written
    assert f"torch {torch.__version__} was built {built}." in written
    assert "or set device: cpu" in written


# out of memory


def of_cuda() -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ...")


def of_mps() -> NoReturn:
    raise RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GiB). Tried to allocate 256.00 MiB on pool.")


def of_the_cpu() -> None:
    torch.empty(1 << 50)


@pytest.mark.parametrize(
    ("run_out", "asked"), [(of_cuda, "20.00 GiB"), (of_mps, "256.00 MiB"), (of_the_cpu, "4194304.0 GiB")]
)
def test_running_out_of_memory_is_one_message_with_the_size_and_what_helps(
    run_out: Callable[[], None], asked: str, no_gpu: None
) -> None:
    with pytest.raises(OutOfMemoryError) as raised, out_of_memory_advice():
        run_out()
    first, *advice = str(raised.value).splitlines()
    assert first.startswith(f"out of memory: {asked} more were asked for; this machine has ")
    for key in ("precision: bf16", "accumulate", "activation_checkpointing: true", "batch_size", "context_length"):
        assert key in "\n".join(advice)


def test_out_of_memory_on_a_gpu_says_what_there_is(cuda: None) -> None:
    words = r"NVIDIA H100 has 80\.0 GiB, of which 3\.0 GiB are free and 70\.5 GiB hold this training's tensors"
    with pytest.raises(OutOfMemoryError, match=words), out_of_memory_advice():
        of_cuda()


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")])
def test_other_errors_keep_their_class(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, out_of_memory_advice():
        raise error
    assert raised.value is error


def test_a_stage_that_runs_out_of_memory_exits_with_2_and_no_traceback(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_stage, "load_params", lambda cls: cls(**PARAMS))
    monkeypatch.setattr(train_stage, "stage_inputs", lambda stage: {})
    monkeypatch.setattr(train_stage, "retain_freed_memory", lambda: None)
    monkeypatch.setattr(train_stage, "build_training", lambda *_, **__: of_the_cpu())
    with pytest.raises(SystemExit) as exited:
        run_program(train_stage.main)
    written = capsys.readouterr().err
    assert exited.value.code == 2
    assert "\nerror: out of memory: " in written and "Traceback" not in written
