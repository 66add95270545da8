"""Warns of runs that an older MLflow keeps in files, beside a store that is a SQLite file."""

import os

from reprogpt.paths import repository_root

_WARNING = (
    'an older MLflow kept runs of its own in {folders}, so plain `mlflow ui` shows those or refuses ("maintenance\n'
    'mode") instead of showing mlflow.db. `make ui` names the store; or move them away:\n'
    "mkdir -p mlruns-old && mv {folders} mlruns-old/"
)


def file_store_warning() -> str | None:
    """How such runs in the repository disturb plain `mlflow ui`, and what to do; None if there are none."""
    # As MLflow looks for them; our artifacts lie beside them, in folders that are named after runs.
    metadata = (repository_root() / "mlruns").glob("*/meta.yaml")
    names = sorted(path.parent.name for path in metadata if path.parent.name.isdigit())
    return _WARNING.format(folders=" ".join(f"mlruns/{name}" for name in names)) if names else None


def is_default_store() -> bool:
    """Whether plain `mlflow ui` is meant to show the present store."""
    return not os.environ.get("MLFLOW_TRACKING_URI")
