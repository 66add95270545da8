"""`reprogpt overlay A B …`: draws several runs in the same figures."""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent, wrap

from reprogpt.errors import PipelineError
from reprogpt.lineage.resolve_run import (
    find_run_of_name,
    parent_run,
    require_distinct,
    run_that_trained,
    unknown_name_error,
)
from reprogpt.lineage.revisions import Workspace, list_experiments, resolve_commit
from reprogpt.params.train import TrainParams
from reprogpt.paths import TRAIN_SUMMARY
from reprogpt.plotting.overlay import MAX_RUNS, METRICS, RunCurves, draw_overlay
from reprogpt.plotting.style import METADATA, can_draw, save_figure
from reprogpt.tracking.runs import TrackedRun
from reprogpt.tracking.store import metric_histories, search_runs

FOLDER = Path("overlays")  # git ignores it
WORKSPACE = "."
MAX_LABEL = 58  # cells that fit into the legend
MAX_NAME = 30  # cells; of a file's name, bytes: six fit into the 255 of a file system
WIDTH = 97


def overlay(a: str, b: Sequence[str]) -> int:
    """Draw the trainings that a and b, the others, name, into a folder in overlays/ named after them; returns 0.

    Prints what is drawn, and the files. Raises PipelineError for more than MAX_RUNS words, a word that names no
    training, two that name the same one, a run without steps, and if the files can't be written.
    """
    words = [a, *b]
    if len(words) > MAX_RUNS:
        raise PipelineError(
            f"{len(words)} runs are too many for one figure: more than {MAX_RUNS} lines can't be told apart"
        )
    runs = search_runs()
    chosen = [find_training(word, runs) for word in words]
    trainings = [run for run, _ in chosen]
    require_distinct(words, trainings, runs)
    drawn = [_curves(run, label) for run, label in zip(trainings, _drawable(labels(trainings), trainings), strict=True)]
    differing = differences(trainings)
    for (run, remark), curves, pairs in zip(chosen, drawn, differing, strict=True):
        print(f"{run.id}  {run.name}  {run.status}  {_extent(curves)}")
        for words_of_it in (remark, ", ".join(pairs)):
            print(indent("".join(f"{line}\n" for line in wrap(words_of_it, WIDTH)), "   "), end="")
    note = corpus_remark(trainings)
    print(f"\n{note}" if note else "")
    folder = FOLDER / "-".join(_file_names(trainings))
    with _write_errors(folder):
        for name, figure in draw_overlay(drawn, note).items():
            save_figure(figure, folder, name)
            print(*(folder / f"{name}.{kind}" for kind in METADATA), sep="\n")
    return 0


def find_training(what: str, runs: Sequence[TrackedRun]) -> tuple[TrackedRun, str]:
    """The training that `what` names, and a remark to print ("" usually).

    what: as in find_run_of_name, where an evaluation stands for its training; or WORKSPACE, a DVC experiment or a
    commit, which stand for the newest run that trained their result. runs: newest first.
    Raises PipelineError if it names none.
    """
    found = find_run_of_name(what, runs) if what != WORKSPACE else None
    if found:
        parent = parent_run(found[0], runs)
        return (parent, f"{what} is an evaluation of it") if parent else found
    known = list_experiments()
    revision = Workspace() if what == WORKSPACE else known.get(what) or resolve_commit(what)
    if revision is None:
        raise unknown_name_error(what, runs, list(known))
    key = revision.summary_key
    if key is None:
        raise PipelineError(
            f"{revision.name} has no run_key in {TRAIN_SUMMARY}, so it holds no training; `dvc repro` makes one"
        )
    trained = run_that_trained(revision, runs)
    if trained is None:
        raise PipelineError(
            f"no MLflow run trained what {revision.name} holds (run_key {key}): it was trained elsewhere,\n"
            "or its run was deleted; `dvc repro -f train` trains it here"
        )
    return trained, f"trained what {revision.name} holds"


def differences(runs: Sequence[TrackedRun]) -> list[list[str]]:
    """For each run, `key=value` of the train parameters that differ between the runs, in their order."""
    keys = [key for key in TrainParams.model_fields if len({run.params.get(key) for run in runs}) > 1]
    return [[f"{key}={_value(run.params.get(key))}" for key in keys] for run in runs]


def labels(runs: Sequence[TrackedRun]) -> list[str]:
    """For each run a legend label: name, status unless FINISHED, and as many differing parameters as fit."""
    made = []
    for name, run, pairs in zip(_names(runs), runs, differences(runs), strict=True):
        status = "" if run.status == "FINISHED" else f" [{run.status}]"
        text = f"{_cut(name, MAX_NAME)}{status}"
        for number, pair in enumerate(pairs):
            joint = ", " if number else ": "
            rest = len(pairs) - number
            room = MAX_LABEL - (len(f", +{rest} more") if rest > 1 else 0)
            if num_cells(text + joint + pair) > room:
                text += f"{joint}+{rest} more"
                break
            text += joint + pair
        made.append(text)
    return made


def _drawable(made: Sequence[str], runs: Sequence[TrackedRun]) -> list[str]:
    """The labels; the run's id instead of one with characters that no font here has, which is said once."""
    drawable = [can_draw(label) for label in made]
    if not all(drawable):
        print(
            "no font for all characters of these names is installed: the figures have the runs' ids instead\n"
            "(Debian: apt-get install fonts-noto-cjk)",
            file=sys.stderr,
        )
    return [label if fits else run.id[:8] for label, fits, run in zip(made, drawable, runs, strict=True)]


def corpus_remark(runs: Sequence[TrackedRun]) -> str:
    """Why the runs' losses are not comparable, "" if they are as far as recorded."""
    texts = {run.tags["corpus.sha256"] for run in runs if "corpus.sha256" in run.tags}
    tokens = [dict.fromkeys(run.datasets.values()) for run in runs if run.datasets]
    if len(texts) > 1:
        return "trained on different texts: the losses are not comparable"
    if any(other != tokens[0] for other in tokens):
        return "trained on different tokens: the losses are not comparable"
    return ""


def _curves(run: TrackedRun, label: str) -> RunCurves:
    history = metric_histories(run.id, METRICS)
    if not history["loss"]:
        raise PipelineError(f"the run {run.id}, {run.name}, {run.status}, has no steps yet: leave it out")
    sizes = [int(run.params.get(key, 0)) for key in ("batch_size", "context_length")]
    max_norm = run.params.get("max_norm", "None")  # as MLflow holds null
    return RunCurves(label, history, sizes[0] * sizes[1], None if max_norm == "None" else float(max_norm))


def _extent(curves: RunCurves) -> str:
    """The number of recorded steps and the best evaluation."""
    evaluated = curves.series("val_loss")
    best = f"best val_loss {evaluated.min():.3f} (step {evaluated.idxmin()})" if len(evaluated) else "no val_loss"
    number = len(curves.history["loss"])
    return f"{number} step{'s' if number > 1 else ''}, {best}"


def _names(runs: Sequence[TrackedRun]) -> list[str]:
    """The runs' names, with the start of the id where several have the same name."""
    times = Counter(run.name for run in runs)
    return [run.name if times[run.name] == 1 else f"{run.name} {run.id[:8]}" for run in runs]


def _file_names(runs: Sequence[TrackedRun]) -> list[str]:
    """As _names, shortened to characters that every file system allows."""
    made = [re.sub(r"[^\w.]+", "-", name).strip("-.") for name in _names(runs)]
    made = [name.encode()[:MAX_NAME].decode(errors="ignore") for name in made]
    return [name if name and made.count(name) == 1 else run.id[:8] for name, run in zip(made, runs, strict=True)]


def _value(value: str | None) -> str:
    return "absent" if value is None else _cut(value, 20) or '""'


def _cut(text: str, most: int) -> str:
    """The text, or its beginning and an ellipsis, in at most so many cells."""
    if num_cells(text) <= most:
        return text
    while num_cells(text) > most - 1:
        text = text[:-1]
    return f"{text}…"


def num_cells(text: str) -> int:
    """The width of a text in cells of a terminal, near its width in a figure: wide characters have two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PipelineError(f"{folder} can't be written: {error.strerror or error}") from None
