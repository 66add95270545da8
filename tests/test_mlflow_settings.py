"""MLflow's settings are in place before mlflow is imported, whichever of our files is imported first."""

import os
import re
import subprocess
import sys
from pathlib import Path

from reprogpt import mlflow_settings

SOURCE = Path(mlflow_settings.__file__).parents[1]
# Imports each module anew, up to the point where it imports mlflow, and prints what mlflow would find then.
SCRIPT = """
import os, sys
from importlib import import_module

class MLflowIsImported(Exception):
    pass

class Finder:
    def find_spec(self, name, *_):
        if name == "mlflow":
            raise MLflowIsImported

sys.meta_path.insert(0, Finder())
for module in sys.argv[1:]:
    os.environ.pop("MLFLOW_DISABLE_TELEMETRY", None)
    for name in [name for name in sys.modules if name.startswith("reprogpt")]:
        del sys.modules[name]
    try:
        import_module(module)
    except MLflowIsImported:
        print(module, os.environ.get("MLFLOW_DISABLE_TELEMETRY"))
"""


def importers_of_mlflow() -> list[str]:
    """Our modules that import mlflow, apart from the one that MLflow itself runs."""
    paths = [path for path in SOURCE.rglob("*.py") if path.name != "text_generator.py"]
    chosen = [path for path in paths if re.search(r"(?m)^(from|import) mlflow\b", path.read_text("utf-8"))]
    return sorted(".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in chosen)


def test_settings_are_made_before_mlflow_is_imported() -> None:
    modules = importers_of_mlflow()
    assert len(modules) > 4
    env = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", SCRIPT, *modules], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{module} true" for module in modules]
