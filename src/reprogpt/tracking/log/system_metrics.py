"""System metrics of a training, measured by MLflow's own monitors when an evaluation is logged.

They are queued like any other metric: MLflow's own thread would upload them itself and end at the first request that
fails. Those of NVIDIA GPUs need the package nvidia-ml-py (`pip install reprogpt[gpu]`).
"""

import logging

import reprogpt.mlflow_settings  # noqa: F401

# isort: split
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

from reprogpt.tags import SYSTEM_PREFIX


class SystemMetrics:
    """The machine's processors, memory and NVIDIA GPUs. Each sample covers the time since the previous one."""

    def __init__(self) -> None:
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor()]
        try:
            self._monitors.append(GPUMonitor())
        except Exception:  # no package, no driver or no GPU; MLflow itself catches as much
            return
        logging.getLogger(GPUMonitor.__module__).setLevel(logging.ERROR)  # some GPUs report no utilization, each time

    def sample(self) -> dict[str, float]:
        """Metrics under the names that MLflow gives them, for its page "System metrics"."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return {f"{SYSTEM_PREFIX}{key}": value for key, value in values.items()}
