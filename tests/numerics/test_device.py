"""Device, precision and matrix products."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reprogpt.errors import DeviceError
from reprogpt.numerics import device
from reprogpt.numerics.device import FP32_TOLERANCE, Numerics, matmul_error, set_up_numerics


@pytest.fixture(autouse=True)
def setting_put_back() -> Iterator[None]:
    """Products as they were. Deterministic algorithms stay on: nothing may need another kind."""
    before = setting()
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before  # type: ignore[attr-defined]


def setting() -> str:
    """What routes fp32 products: "bf16" to oneDNN, "none" to torch's own library."""
    return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


def on_cpu(matmul: str = "torch", precision: str = "fp32") -> Numerics:
    return set_up_numerics(device="cpu", precision=precision, matmul=matmul)


def matmul() -> torch.Tensor:
    stream = torch.Generator().manual_seed(0)
    left, right = torch.randn(256, 768, generator=stream), torch.randn(768, 512, generator=stream)
    return left @ right


def set_processor(monkeypatch: pytest.MonkeyPatch, vendor: str, capability: str) -> None:
    monkeypatch.setattr(device, "cpu_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)


def test_the_choice_is_said() -> None:
    assert on_cpu("torch", "bf16") == Numerics(torch.device("cpu"), "bf16", "torch")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_an_absent_device_is_refused_with_what_there_is(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=rf"device: {device} is not available here \(found: cpu\); set device to one"):
        set_up_numerics(device=device, precision="fp32", matmul="auto")


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_takes_the_first_device_there_is(
    cuda: bool, mps: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    found = set_up_numerics(device="auto", precision="fp32", matmul="torch")
    assert (found.device.type, found.matmul) == (chosen, "torch")


def test_onednn_is_refused_elsewhere_than_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DeviceError, match="matmul: onednn is for the CPU; on device cuda use auto or torch"):
        set_up_numerics(device="cuda", precision="fp32", matmul="onednn")


def test_operations_without_a_deterministic_form_are_refused() -> None:
    torch.use_deterministic_algorithms(False)
    on_cpu()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def test_torchs_products_are_true_fp32() -> None:
    on_cpu("torch")
    assert 0 < matmul_error() < FP32_TOLERANCE / 2


def test_the_test_of_products_sees_rounding_to_bf16() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert matmul_error() > 10 * FP32_TOLERANCE


def test_onednn_and_torch_products_agree_but_are_not_the_same() -> None:
    on_cpu("torch")
    torchs = matmul()
    try:
        chosen = on_cpu("onednn")
    except DeviceError as error:
        pytest.skip(f"no exact oneDNN on this processor: {error}")
    assert chosen.matmul == "onednn"
    onednns = matmul()
    assert (onednns - torchs).abs().max() <= FP32_TOLERANCE * torchs.abs().max()
    assert not torch.equal(onednns, torchs)
    assert on_cpu("torch").matmul == "torch"
    assert torch.equal(matmul(), torchs)


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
    assert setting() == {"onednn": "bf16", "torch": "none"}[chosen]


def test_auto_falls_back_with_a_message_where_onednn_is_inexact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_processor(monkeypatch, "AuthenticAMD", "AVX512")
    monkeypatch.setattr(device, "matmul_error", lambda: 0.003)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert on_cpu("auto").matmul == "torch"
    assert setting() == "none"
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err == "matmul: torch, since oneDNN's products are off by 3.0e-03 here (allowed: 1e-05)\n"


def test_onednn_is_refused_where_it_is_inexact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "matmul_error", lambda: 0.003)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    with pytest.raises(DeviceError, match=r"matmul: onednn is refused, since .* off by 3\.0e-03.*use auto or torch"):
        on_cpu("onednn")
    assert setting() == "none"


def test_onednn_is_refused_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="matmul: onednn is not built into this torch; use auto or torch"):
        on_cpu("onednn")


def test_the_guard_measures_the_products_it_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    measured_under: list[str] = []

    def watched() -> float:
        measured_under.append(setting())
        return 0.0

    monkeypatch.setattr(device, "matmul_error", watched)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    on_cpu("onednn")
    assert measured_under == ["bf16"]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_is_on_for_bf16_alone(precision: str, dtype: torch.dtype) -> None:
    with on_cpu(precision=precision).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_vendor_that_cannot_be_read_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*arguments: object, **options: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", unreadable)
    assert device.cpu_vendor() == ""


def test_a_vendor_is_the_first_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t: 1\n\nprocessor\t: 1\nvendor_id\t: Other\n"
    monkeypatch.setattr(Path, "read_text", lambda *arguments, **options: text)
    assert device.cpu_vendor() == "AuthenticAMD"
