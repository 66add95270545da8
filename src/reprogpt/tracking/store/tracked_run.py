"""An MLflow run as plain values, without a connection to the store."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrackedRun:
    """id: 32 hex digits. metrics: the last value of each. datasets: path of an input -> its digest.

    is_deleted: whether it was deleted in MLflow, which can restore it.
    """

    id: str
    name: str
    status: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    datasets: dict[str, str] = field(default_factory=dict)
    is_deleted: bool = False

    @property
    def is_running(self) -> bool:
        """Whether MLflow has no end of it on record."""
        return self.status in ("RUNNING", "SCHEDULED")
