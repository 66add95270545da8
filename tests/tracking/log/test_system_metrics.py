"""System metrics of this machine, and of a GPU that is made up."""

import psutil
import pytest

from reprogpt.tracking.log import system_metrics
from reprogpt.tracking.log.system_metrics import SystemMetrics


class FakeGPU:
    """A GPU that is busier at each sample."""

    def __init__(self) -> None:
        self._busy: list[int] = []
        self._num_samples = 0

    def collect_metrics(self) -> None:
        self._num_samples += 1
        self._busy.append(self._num_samples)

    def aggregate_metrics(self) -> dict[str, float]:
        return {"gpu_0_utilization_percentage": sum(self._busy) / len(self._busy)}

    def clear_metrics(self) -> None:
        self._busy.clear()


def test_processors_and_memory_are_measured_under_mlflows_names() -> None:
    values = SystemMetrics().sample()
    assert values["system/system_memory_usage_percentage"] == pytest.approx(psutil.virtual_memory().percent, abs=20)
    assert 0 <= values["system/cpu_utilization_percentage"] <= 100
    assert all(key.startswith("system/") for key in values)


def test_each_sample_is_of_the_time_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics, "GPUMonitor", FakeGPU)
    metrics = SystemMetrics()
    assert [metrics.sample()["system/gpu_0_utilization_percentage"] for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("error", [ImportError("nvidia-ml-py"), RuntimeError("NVML"), OSError("driver")])
def test_without_the_package_or_a_driver_there_are_no_gpu_metrics(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(system_metrics, "GPUMonitor", fail)
    assert not any("gpu" in key for key in SystemMetrics().sample())
