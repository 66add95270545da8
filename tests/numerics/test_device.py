"""Device, precision and matmul backend."""

from collections.abc import Iterator

import pytest
import torch

from reprogpt.errors import DeviceError
from reprogpt.numerics import device
from reprogpt.numerics.device import FP32_TOLERANCE, Numerics, matmul_error, set_up_numerics


@pytest.fixture(autouse=True)
def matmul_setting_restored() -> Iterator[None]:
    """Restore the matmul backend. Deterministic algorithms stay on: no test may need others."""
    before = matmul_setting()
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before  # type: ignore[attr-defined]


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


def test_what_was_chosen_is_returned() -> None:
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


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_is_on_for_bf16_only(precision: str, dtype: torch.dtype) -> None:
    with on_cpu(precision=precision).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
