"""System metrics, sampled on this system_metrics."""

import time

import psutil
import pytest

from reprogpt.tracking.system_metrics import SystemMetrics


def test_processor_time_counts_since_the_last_sample() -> None:
    system_metrics = SystemMetrics()
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    busy = system_metrics.sample()["system/process_cpu_percentage"]
    time.sleep(0.2)
    asleep = system_metrics.sample()["system/process_cpu_percentage"]
    assert asleep < busy  # how busy depends on what else runs here


def test_logging_time_is_added_up_and_reset_by_a_sample() -> None:
    system_metrics = SystemMetrics()
    for _ in range(2):
        with system_metrics.logging_time():
            time.sleep(0.02)
    assert 40 <= system_metrics.sample()["system/recording_milliseconds"] < 2000
    assert system_metrics.sample()["system/recording_milliseconds"] == 0


def test_memory_is_in_megabytes() -> None:
    values = SystemMetrics().sample()
    resident = psutil.Process().memory_info().rss / 1e6
    assert values["system/process_peak_memory_megabytes"] > 0.9 * resident  # counted in pages by each processor
    assert values["system/system_memory_usage_percentage"] == pytest.approx(psutil.virtual_memory().percent, abs=20)


def test_all_is_where_mlflow_looks_for_it() -> None:
    assert all(key.startswith("system/") for key in SystemMetrics().sample())
