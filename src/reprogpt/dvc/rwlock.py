"""The file by which running DVC processes know each other: what each of them reads and writes."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from reprogpt.files import parse_json

RWLOCK = Path(".dvc/tmp/rwlock")
_READS, _WAIT = 20, 0.1  # attempts, and seconds between them: DVC does not replace the file atomically


def read_rwlock() -> dict[str, Any]:
    """DVC's record of its running processes.

    Raises OSError if it can't be read, ValueError if it was cut, as by a kill of DVC.
    """
    for _ in range(_READS):
        with suppress(ValueError):
            return parse_json(RWLOCK.read_bytes())
        time.sleep(_WAIT)
    raise ValueError(f"{RWLOCK} is not whole")


def pids_writing_outs() -> set[int] | None:
    """The process ids of the DVC processes that run a stage here, by DVC's own record; a killed one may still be there.

    None if there is no such record, or none that can be read.
    """
    try:
        writers = read_rwlock().get("write", {})  # which is absent while no stage runs
        return {int(writer["pid"]) for writer in writers.values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
