"""One thin script per DVC stage, run as `python -m stages.NAME` from the repository's root.

DVC runs a queued experiment in a copy of the workspace, while an editable install points at the
main one: this copy's src/ must come first, or the experiment would run other code than it records.
Then, before a stage imports numpy or torch, the switches that they read as they are loaded.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from reprogpt.environment import set_environment
from reprogpt.errors import end_quietly_while_loading

end_quietly_while_loading()
set_environment(Path("params.yaml"))
