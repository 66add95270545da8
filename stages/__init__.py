"""One thin script per DVC stage, run as `python -m stages.NAME` from the repository's root.

DVC runs a queued experiment in a copy of the workspace, but an editable install points at the main workspace. This
copy's src/ must come first on the path, or the experiment would run other code than it records.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from reprogpt.dvc.lock import differs_from_last_result
from reprogpt.numerics.env_vars import set_env_vars
from reprogpt.params.loader import peek
from reprogpt.process.run import exit_on_signal_during_imports, run_program
from reprogpt.process.streams import outlive_readers
from reprogpt.process.utf8 import restart_in_utf8_mode

restart_in_utf8_mode()
exit_on_signal_during_imports()
set_env_vars(peek())  # before a stage imports torch, which reads the variables as it is loaded


def run_stage(main: Callable[[], None]) -> NoReturn:
    """run_program for a stage. DVC removes its outs before it runs, hence the advice on how to restore them."""
    stage = os.environ.get("DVC_STAGE")
    outlive_readers()
    run_program(main, is_restorable=lambda: stage is not None and differs_from_last_result(stage))
