"""System metrics, sampled on this machine, and of GPUs that are made up."""

import time
from types import SimpleNamespace

import psutil
import pytest

from reprogpt.tracking.log import system_metrics
from reprogpt.tracking.log.system_metrics import SystemMetrics


class FakeNvml:
    """pynvml with GPUs of 80 GB: the first uses 20 GB and is at 87 %, the second uses 8 GB and is at 3 %."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, has_driver: bool = True, has_utilization: bool = True) -> None:
        self.has_driver = has_driver
        self.has_utilization = has_utilization
        self.num_open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.has_driver:
            raise self.NVMLError("Driver Not Loaded")
        self.num_open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.num_open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=[20, 8][handle] * 10**9, total=80 * 10**9)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        if not self.has_utilization:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=[87, 3][handle])


def gpu_values() -> dict[str, float]:
    return {key: value for key, value in SystemMetrics().sample().items() if "gpu" in key}


def test_processor_time_counts_since_the_last_sample() -> None:
    metrics = SystemMetrics()
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    busy = metrics.sample()["system/process_cpu_percentage"]
    time.sleep(0.2)
    asleep = metrics.sample()["system/process_cpu_percentage"]
    assert asleep < busy  # how busy depends on what else runs here


def test_logging_time_is_added_up_and_reset_by_a_sample() -> None:
    metrics = SystemMetrics()
    for _ in range(2):
        with metrics.logging_time():
            time.sleep(0.02)
    assert 40 <= metrics.sample()["system/recording_milliseconds"] < 2000
    assert metrics.sample()["system/recording_milliseconds"] == 0


def test_memory_is_in_megabytes() -> None:
    values = SystemMetrics().sample()
    resident = psutil.Process().memory_info().rss / 1e6
    assert values["system/process_peak_memory_megabytes"] > 0.9 * resident  # counted in pages by each processor
    assert values["system/system_memory_usage_percentage"] == pytest.approx(psutil.virtual_memory().percent, abs=20)


def test_all_is_where_mlflow_looks_for_it() -> None:
    assert all(key.startswith("system/") for key in SystemMetrics().sample())


def test_each_gpu_has_its_utilization_and_memory_under_mlflows_names(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setattr(system_metrics, "pynvml", nvml)
    assert gpu_values() == {
        "system/gpu_0_utilization_percentage": 87,
        "system/gpu_0_memory_usage_megabytes": 20_000,
        "system/gpu_0_memory_usage_percentage": 25,
        "system/gpu_1_utilization_percentage": 3,
        "system/gpu_1_memory_usage_megabytes": 8000,
        "system/gpu_1_memory_usage_percentage": 10,
    }
    assert nvml.num_open == 0


@pytest.mark.parametrize("nvml", [None, FakeNvml(has_driver=False)])
def test_without_the_package_or_a_driver_there_are_no_gpu_metrics(
    nvml: FakeNvml | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_metrics, "pynvml", nvml)
    assert gpu_values() == {}
    assert nvml is None or nvml.num_open == 0


def test_a_gpu_without_utilization_still_has_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(has_utilization=False)
    monkeypatch.setattr(system_metrics, "pynvml", nvml)
    assert gpu_values() == {
        "system/gpu_0_memory_usage_megabytes": 20_000,
        "system/gpu_0_memory_usage_percentage": 25,
    }
    assert nvml.num_open == 0
