"""`reprogpt check`: report every problem of params.yaml, and of what DVC and git need of the folder."""

import click

from reprogpt.cli.command import Command
from reprogpt.dvc.repair import remove_cut_rwlock, require_repository, restore_lock, warnings
from reprogpt.messages import print_message
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.fetch import FetchParams
from reprogpt.params.loader import PARAMS_FILE, Params, problems_of, raise_problems, read_mapping, unknown_keys
from reprogpt.params.split import SplitParams
from reprogpt.params.tokenize import TokenizeParams
from reprogpt.params.train import TrainParams
from reprogpt.process.streams import write_output

STAGES: tuple[type[Params], ...] = (FetchParams, SplitParams, TokenizeParams, TrainParams, EvaluateParams)


@click.command(cls=Command)
def check() -> None:
    """Check params.yaml for all stages at once: values out of range, wrong types, missing and unknown keys.

    No stage is run. The command also warns of settings that stop some of DVC's commands, and repairs two files that a
    kill of DVC can cut in the middle, over which DVC would stop or forget stages: dvc.lock is replaced by the
    committed one, and the cut file is kept as dvc.lock.cut; .dvc/tmp/rwlock, DVC's record of its running processes,
    is removed.

    \b
    Exit codes:
      0  no problems, or warnings only
      2  problems in params.yaml, or DVC can't run here

    \b
    Examples:
      reprogpt check && dvc repro
    """
    values = read_mapping(PARAMS_FILE)
    problems = unknown_keys(values) + [problem for stage in STAGES for problem in problems_of(stage, values)]
    raise_problems(list(dict.fromkeys(problems)))  # a key that two stages read is reported once
    require_repository()
    for repaired in (restore_lock(), remove_cut_rwlock()):
        if repaired:
            print_message(repaired)
    # Not print: DVC, which restore_lock imports, has standard output wrapped so that errors lose their place.
    write_output(f"{PARAMS_FILE}: {len(values)} keys, all within their ranges\n")
    for warning in warnings():
        print_message(f"\nwarning: {warning}\n")
