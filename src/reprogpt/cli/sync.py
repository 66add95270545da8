"""`reprogpt sync`: upload the records that wait in the outbox, and what MLflow has lost of the present training."""

import os

from reprogpt.cli.confirm import confirmed
from reprogpt.tracking.deliver.reconcile import rebuild_run
from reprogpt.tracking.deliver.uploader import drop_records_for_other_stores, upload_abandoned, waiting_for_other_stores
from reprogpt.tracking.store.uri import store_name


def sync(*, to: str | None = None, drop: bool = False, yes: bool = False) -> int:
    """Upload what waits, refused records too, and print the result: 0, or 1 if any record is not uploaded.

    Then the run of data/model is made whole again, as rebuild_run does.

    to: a store's URI, to which records for other stores are uploaded, too. drop: delete those for other stores
    instead. Both ask on the terminal, unless `yes`. Raises TrackingError if the store can't be used.
    """
    if to:
        os.environ["MLFLOW_TRACKING_URI"] = to
    if to or drop:
        others = waiting_for_other_stores()
        for store, count in others.items():
            print(f"{count} records wait for {store}")
        what = f"Upload them to {store_name()}?" if to else "Delete them for good?"
        if others and not (yes or confirmed(what)):
            print("nothing is changed")
            return 1
        if drop:
            drop_records_for_other_stores()
    found = upload_abandoned(retry=True, any_store=bool(to))
    print(f"{found.num_uploaded or 'no'} records uploaded to {store_name()}")
    for store in found.other_stores:
        print(
            f"others wait for {store}: run this again with MLFLOW_TRACKING_URI set to it, "
            "or with --to URI to upload them to another store, or with --drop to delete them"
        )
    for failure in found.failures:
        print(f"not uploaded: {failure}")
    for what in found.set_aside:
        print(f"refused: {what}")
    rebuilt = rebuild_run()
    if rebuilt:
        print(rebuilt)
    return 1 if found.other_stores or found.failures or found.set_aside else 0
