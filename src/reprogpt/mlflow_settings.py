"""MLflow's settings as environment variables; a user's own values stay.

Import it before mlflow, which reads some of them when it is imported.
"""

import os

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # a run's address, each time that a stage's records are uploaded
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the uploader retries, and says so
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds without an answer
    "PGCONNECT_TIMEOUT": "10",  # seconds, of PostgreSQL's client; it would wait for minutes
    # A connection that is kept open would write on to a database file that was removed or replaced.
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
    # It counts files, and one file is nearly all of the bytes.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)
