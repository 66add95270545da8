"""`reprogpt sync`: upload the records that wait in the outbox, and what MLflow has lost of the present training."""

from reprogpt.tracking.deliver.uploader import upload_abandoned
from reprogpt.tracking.log.rebuild import rebuild_run
from reprogpt.tracking.store.uri import store_name


def sync() -> int:
    """Upload what waits, refused records too, and print the result: 0, or 1 if any record is not uploaded.

    Then upload what the run of data/model lacks, as rebuild_run does. Raises TrackingError if the store can't be used.
    """
    uploads = upload_abandoned(retry=True)
    print(f"{uploads.num_uploaded or 'no'} records uploaded to {store_name()}")
    for reason in uploads.waiting:
        print(f"not uploaded: {reason}")
    for what in uploads.set_aside:
        print(f"refused: {what}")
    rebuilt = rebuild_run()
    if rebuilt:
        print(rebuilt)
    return 1 if uploads.waiting or uploads.set_aside else 0
