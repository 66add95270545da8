"""What a training takes of its machine, measured at moments that are recorded anyway: no thread, no sampling."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


class Machine:
    """Measures from one measure() to the next; the first counts from the making of this."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the beginning of its first interval
        self._wall, self._processor = time.monotonic(), time.process_time()
        self._recording = 0.0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Count the block's time as spent on recording, with the training waiting."""
        started = time.perf_counter()
        yield
        self._recording += time.perf_counter() - started

    def measure(self) -> dict[str, float]:
        """Metrics for MLflow's page "System metrics", the first two by the names that MLflow gives them.

        Percentages are of the whole machine; but of process_cpu_percentage, 100 is one core. Megabytes are 10^6.
        """
        wall, processor = time.monotonic(), time.process_time()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_percentage": psutil.virtual_memory().percent,
            "process_cpu_percentage": 100 * (processor - self._processor) / max(wall - self._wall, 1e-9),
            "process_peak_memory_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT / 1e6,
            "recording_milliseconds": 1000 * self._recording,
        }
        self._wall, self._processor, self._recording = wall, processor, 0.0
        return {f"system/{key}": value for key, value in values.items()}
