"""System metrics of a training, sampled when an evaluation is logged: no thread of their own.

Those of NVIDIA GPUs need the package nvidia-ml-py (`pip install reprogpt[gpu]`); without it they are left out.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

try:
    import pynvml
except ImportError:
    pynvml = None

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


class SystemMetrics:
    """Each sample covers the time since the previous one, the first since construction."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # starts its first interval
        self._wall_time = time.monotonic()
        self._process_time = time.process_time()
        self._logging_seconds = 0.0

    @contextmanager
    def logging_time(self) -> Iterator[None]:
        """Count the block's time as time that the training waited for logging."""
        started = time.perf_counter()
        yield
        self._logging_seconds += time.perf_counter() - started

    def sample(self) -> dict[str, float]:
        """Metrics for MLflow's page "System metrics", the first two under MLflow's own names.

        Percentages are of the whole machine, but of process_cpu_percentage 100 is one core. A megabyte is 10^6 bytes.
        Of every NVIDIA GPU that this process can see: utilization and memory, under MLflow's names.
        """
        wall_time = time.monotonic()
        process_time = time.process_time()
        busy_share = (process_time - self._process_time) / max(wall_time - self._wall_time, 1e-9)
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_percentage": psutil.virtual_memory().percent,
            "process_cpu_percentage": 100 * busy_share,
            "process_peak_memory_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT / 1e6,
            "recording_milliseconds": 1000 * self._logging_seconds,
        }
        values |= _gpu_metrics()
        self._wall_time = wall_time
        self._process_time = process_time
        self._logging_seconds = 0.0
        return {f"system/{key}": value for key, value in values.items()}


def _gpu_metrics() -> dict[str, float]:
    """utilization and memory of each NVIDIA GPU, {} without a GPU, its driver or nvidia-ml-py."""
    if pynvml is None:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    values: dict[str, float] = {}
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            values[f"gpu_{index}_memory_usage_megabytes"] = memory.used / 1e6
            values[f"gpu_{index}_memory_usage_percentage"] = 100 * memory.used / memory.total
            values[f"gpu_{index}_utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    except pynvml.NVMLError:  # some virtual GPUs report no utilization
        return values
    finally:
        pynvml.nvmlShutdown()
    return values
