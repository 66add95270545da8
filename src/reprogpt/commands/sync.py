"""`reprogpt sync`: deliver the records that the MLflow store could not take when they were made."""

from reprogpt.record.courier import deliver_waiting
from reprogpt.record.store import store_name


def sync() -> int:
    """Deliver what waits and say what became of it: 0, or 1 where records wait for another store.

    Raises TrackingError where the store can't be used.
    """
    waiting = deliver_waiting()
    print(f"{waiting.delivered or 'no'} records delivered to {store_name()}")
    for store in waiting.elsewhere:
        print(f"others wait for {store}: run this again with MLFLOW_TRACKING_URI set to it")
    return 1 if waiting.elsewhere else 0
