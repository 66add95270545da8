"""`reprogpt check`: every problem of params.yaml, of all stages at once, and what git and DVC need of the folder."""

import sys

from reprogpt.dvc.repair import remove_cut_rwlock, require_repository, restore_lock, warnings
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.fetch import FetchParams
from reprogpt.params.loader import PARAMS_FILE, Params, problems_of, raise_problems, read_mapping, unknown_keys
from reprogpt.params.split import SplitParams
from reprogpt.params.tokenize import TokenizeParams
from reprogpt.params.train import TrainParams
from reprogpt.process.output import write_output
from reprogpt.tracking.store.file_store import file_store_warning

STAGES: tuple[type[Params], ...] = (FetchParams, SplitParams, TokenizeParams, TrainParams, EvaluateParams)


def check() -> None:
    """Raise ParamsError with every problem of params.yaml, or say on the terminal that there is none.

    Files that a kill of DVC has cut are restored or removed: dvc.lock, and DVC's record of its running processes.
    Raises PipelineError if DVC can't run here at all; what stops some of its commands only is a warning.
    """
    values = read_mapping(PARAMS_FILE)
    problems = unknown_keys(values) + [problem for stage in STAGES for problem in problems_of(stage, values)]
    raise_problems(list(dict.fromkeys(problems)))  # a key that two stages read is reported once
    require_repository()
    for repaired in (restore_lock(), remove_cut_rwlock()):
        if repaired:
            print(repaired, file=sys.stderr)
    # Not print: DVC, which restore_lock imports, has standard output wrapped so that errors lose their place.
    write_output(f"{PARAMS_FILE}: {len(values)} keys, all within their ranges\n")
    for warning in (*warnings(), file_store_warning()):
        if warning:
            print(f"\nwarning: {warning}\n", file=sys.stderr)
