"""`reprogpt sync`: upload the records that wait in the outbox, and what MLflow has lost of the present training."""

import click

from reprogpt.cli.command import Command
from reprogpt.messages import print_lines
from reprogpt.runs.rebuild import UnconfirmedError, rebuild_run
from reprogpt.tracking.deliver.uploader import upload_abandoned
from reprogpt.tracking.store.uri import store_name


@click.command(cls=Command)
def sync() -> int:
    """Upload to MLflow the records that wait in .reprogpt/outbox because the store was not available.

    The next stage that runs uploads them as well; this command also retries records that the store refused. If MLflow
    has lost the run of data/model, or points of it, they are uploaded again from data/metrics/history.csv.

    \b
    Exit codes:
      0  every record is uploaded
      1  a record is not uploaded, or a lost run is not rebuilt, since the
         records of how data/model was made do not agree
      2  the store can't be used

    \b
    Examples:
      reprogpt sync
      MLFLOW_TRACKING_URI=http://127.0.0.1:5000 reprogpt sync
    """
    uploads = upload_abandoned(retry=True)
    is_empty = not (uploads.num_uploaded or uploads.waiting or uploads.set_aside)
    done = "nothing to upload" if is_empty else f"{uploads.num_uploaded or 'no'} records uploaded"
    lines = [f"{done} to {store_name()}"]
    lines += [line for reason in uploads.waiting for line in f"not uploaded: {reason}".split("\n")]
    lines += [f"refused: {what}" for what in uploads.set_aside]
    print_lines(lines)
    try:
        rebuilt = rebuild_run()
    except UnconfirmedError as error:
        print_lines(str(error).split("\n"))
        return 1
    if rebuilt:
        print_lines([rebuilt])
    return 1 if uploads.waiting or uploads.set_aside else 0
