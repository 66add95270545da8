"""`reprogpt overlay A B …`: several runs in one figure each."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent, wrap

from reprogpt.errors import PipelineError
from reprogpt.lineage.resolve_run import find_run, parent_run, require_distinct, unknown
from reprogpt.lineage.revisions import SUMMARY, Workspace, experiments, resolve_commit
from reprogpt.params.train import TrainParams
from reprogpt.plotting.overlay import METRICS, MOST_RUNS, RunCurves, draw_overlay
from reprogpt.plotting.style import METADATA, save_figure
from reprogpt.tracking.runs import TrackedRun
from reprogpt.tracking.store import metric_histories, search_runs

FOLDER = Path("overlays")  # git ignores it
WORKSPACE = "."
MOST_LABEL = 58  # characters that fit into the legend
MOST_NAME = 30
WIDTH = 97


def overlay(words: Sequence[str]) -> int:
    """Draw the trainings that the words mean into a folder in overlays/ that is named after them; 0.

    Prints what is drawn, and the files. Raises PipelineError for more than MOST_RUNS words, a word that means no
    training, two that mean the same, a run without steps, and where nothing can be written.
    """
    if len(words) > MOST_RUNS:
        raise PipelineError(
            f"{len(words)} runs are too many for one figure: more than {MOST_RUNS} lines can't be told apart"
        )
    runs = search_runs()
    chosen = [find_training(word, runs) for word in words]
    trainings = [run for run, _ in chosen]
    require_distinct(words, trainings, runs)
    drawn = [_curves(run, label) for run, label in zip(trainings, labels(trainings), strict=True)]
    differing = differences(trainings)
    for (run, remark), curves, pairs in zip(chosen, drawn, differing, strict=True):
        print(f"{run.id}  {run.name}  {run.status}  {_extent(curves)}")
        for words_of_it in (remark, ", ".join(pairs)):
            print(indent("".join(f"{line}\n" for line in wrap(words_of_it, WIDTH)), "   "), end="")
    note = remark_on_texts(trainings)
    print(f"\n{note}" if note else "")
    folder = FOLDER / "-".join(_file_names(trainings))
    with _in_words(folder):
        for name, figure in draw_overlay(drawn, note).items():
            save_figure(figure, folder, name)
            print(*(folder / f"{name}.{kind}" for kind in METADATA), sep="\n")
    return 0


def find_training(what: str, runs: Sequence[TrackedRun]) -> tuple[TrackedRun, str]:
    """The training that `what` means, and a remark for the person ("" mostly).

    what: as in find_run, an evaluation standing for its training; or WORKSPACE, a DVC experiment, or a commit, which
    stand for the newest run that trained what they hold. runs: newest first.
    Raises PipelineError where it means none.
    """
    found = find_run(what, runs) if what != WORKSPACE else None
    if found:
        parent = parent_run(found[0], runs)
        return (parent, f"{what} is an evaluation of it") if parent else found
    known = experiments()
    state = Workspace() if what == WORKSPACE else known.get(what) or resolve_commit(what)
    if state is None:
        raise unknown(what, runs, list(known))
    key = state.summary_key
    if key is None:
        raise PipelineError(f"{state.name} has no run_key in {SUMMARY}, so it holds no training; `dvc repro` makes one")
    trained = next((run for run in runs if run.tags.get("run_key") == key), None)
    if trained is None:
        raise PipelineError(
            f"no MLflow run trained what {state.name} holds (run_key {key}): it was trained elsewhere, or its run was\n"
            "deleted; `dvc repro -f train` trains it here"
        )
    return trained, f"trained what {state.name} holds"


def differences(runs: Sequence[TrackedRun]) -> list[list[str]]:
    """For each run `key=value` of train's parameters that are not the same in all of them, in their order."""
    keys = [key for key in TrainParams.model_fields if len({run.params.get(key) for run in runs}) > 1]
    return [[f"{key}={_value(run.params.get(key))}" for key in keys] for run in runs]


def labels(runs: Sequence[TrackedRun]) -> list[str]:
    """For each run a line for the legend: name, what it is besides FINISHED, and as many differences as fit."""
    made = []
    for name, run, pairs in zip(_names(runs), runs, differences(runs), strict=True):
        status = "" if run.status == "FINISHED" else f" [{run.status}]"
        text = f"{_cut(name, MOST_NAME)}{status}"
        for number, pair in enumerate(pairs):
            joint = ", " if number else ": "
            rest = len(pairs) - number
            room = MOST_LABEL - (len(f", +{rest} more") if rest > 1 else 0)
            if len(text + joint + pair) > room:
                text += f"{joint}+{rest} more"
                break
            text += joint + pair
        made.append(text)
    return made


def remark_on_texts(runs: Sequence[TrackedRun]) -> str:
    """Why the runs' losses don't compare, "" if nothing on record says so."""
    texts = {run.tags["corpus.sha256"] for run in runs if "corpus.sha256" in run.tags}
    tokens = [dict.fromkeys(run.datasets.values()) for run in runs if run.datasets]
    if len(texts) > 1:
        return "trained on different texts: the losses don't compare"
    if any(other != tokens[0] for other in tokens):
        return "trained on different tokens: the losses don't compare"
    return ""


def _curves(run: TrackedRun, label: str) -> RunCurves:
    history = metric_histories(run.id, METRICS)
    if not history["loss"]:
        raise PipelineError(f"the run {run.id}, {run.name}, {run.status}, has no steps yet: leave it out")
    sizes = [int(run.params.get(key, 0)) for key in ("batch_size", "context_length")]
    max_norm = run.params.get("max_norm")
    return RunCurves(label, history, sizes[0] * sizes[1], None if max_norm is None else float(max_norm))


def _extent(curves: RunCurves) -> str:
    """How much of the run there is to draw, and its best evaluation."""
    evaluated = curves.series("val_loss")
    best = f"best val_loss {evaluated.min():.3f} (step {evaluated.idxmin()})" if len(evaluated) else "no val_loss"
    number = len(curves.history["loss"])
    return f"{number} step{'s' if number > 1 else ''}, {best}"


def _names(runs: Sequence[TrackedRun]) -> list[str]:
    """Their names, with the start of the id where several have the same."""
    times = Counter(run.name for run in runs)
    return [run.name if times[run.name] == 1 else f"{run.name} {run.id[:8]}" for run in runs]


def _file_names(runs: Sequence[TrackedRun]) -> list[str]:
    """As _names, of letters that every file system takes, and short."""
    made = [re.sub(r"[^\w.]+", "-", name).strip("-.")[:MOST_NAME] for name in _names(runs)]
    return [name if name and made.count(name) == 1 else run.id[:8] for name, run in zip(made, runs, strict=True)]


def _value(value: str | None) -> str:
    return "absent" if value is None else _cut(value, 20) or '""'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PipelineError(f"{folder} can't be written: {error.strerror or error}") from None
