"""`reprogpt sync`: upload the records that wait in the outbox, and what MLflow has lost of the present training."""

import click

from reprogpt.cli.command import Command
from reprogpt.tracking.deliver.uploader import upload_abandoned
from reprogpt.tracking.log.rebuild import rebuild_run
from reprogpt.tracking.store.uri import store_name


@click.command(cls=Command)
def sync() -> int:
    """Upload to MLflow the records that wait in .reprogpt/outbox because the store was not available.

    The next stage that runs uploads them as well; this command also retries records that the store refused. If MLflow
    has lost the run of data/model, or points of it, they are uploaded again from data/metrics/history.csv.

    \b
    Exit codes:
      0  every record is uploaded
      1  a record is not uploaded
      2  the store can't be used

    \b
    Examples:
      reprogpt sync
      MLFLOW_TRACKING_URI=http://127.0.0.1:5000 reprogpt sync
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
