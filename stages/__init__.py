"""One thin script per DVC stage, run as `python -m stages.NAME` from the repository's root.

DVC runs a queued experiment in a copy of the workspace, but an editable install points at the main workspace. This
copy's src/ must come first on the path, or the experiment would run other code than it records.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from reprogpt.errors import exit_on_signal_during_imports
from reprogpt.numerics.env_vars import set_env_vars
from reprogpt.params.loader import peek

exit_on_signal_during_imports()
set_env_vars(peek("numerics"))  # before a stage imports numpy or torch, which read the variables at import
