"""`reprogpt sync`: upload the records that wait in the outbox."""

from reprogpt.tracking.store import store_name
from reprogpt.tracking.uploader import upload_abandoned


def sync() -> int:
    """Upload what waits and print the result: 0, or 1 if records wait for another store.

    Raises TrackingError if the store can't be used.
    """
    found = upload_abandoned()
    print(f"{found.num_uploaded or 'no'} records uploaded to {store_name()}")
    for store in found.other_stores:
        print(f"others wait for {store}: run this again with MLFLOW_TRACKING_URI set to it")
    return 1 if found.other_stores else 0
