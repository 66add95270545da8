"""`reprogpt sync`: upload the records that wait in the outbox."""

from reprogpt.tracking.store import store_name
from reprogpt.tracking.uploader import upload_abandoned


def sync() -> int:
    """Upload what waits, refused records too, and print the result: 0, or 1 if any record is not uploaded.

    Raises TrackingError if the store can't be used.
    """
    found = upload_abandoned(retry=True)
    print(f"{found.num_uploaded or 'no'} records uploaded to {store_name()}")
    for store in found.other_stores:
        print(f"others wait for {store}: run this again with MLFLOW_TRACKING_URI set to it")
    for failure in found.failures:
        print(f"not uploaded: {failure}")
    for what in found.set_aside:
        print(f"refused: {what}")
    return 1 if found.other_stores or found.failures or found.set_aside else 0
