"""A run's description in Markdown, which MLflow shows at the top of its page. Values in, text out."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from reprogpt.tracking.store.tracked_run import TrackedRun

RESULTS = (
    "final_train_loss",
    "final_val_loss",
    "best_val_loss",
    "val_perplexity",
    "val_bits_per_byte",
    "val_accuracy",
)
SAMPLING = ("temperature", "top_k", "max_new_tokens", "start_context", "seed")


def describe_training(run: TrackedRun) -> str:
    """Corpus, schedule, model, result and origin of a training, and the commands that restore it.

    The same run gives the same text. What is not recorded, such as the result of a run that is not yet evaluated, is
    left out.
    """
    lines = [_corpus(run.tags), _schedule(run), _model(run), _result(run.metrics), _origin(run.tags)]
    experiment = run.tags.get("dvc.experiment")
    by_hand = experiment_commands(experiment) if experiment else repeat_commands(run)
    return _page([line for line in lines if line], run, ["", *_commands(by_hand)])


def describe_evaluation(run: TrackedRun, training: TrackedRun) -> str:
    """The description of a child run: an evaluation of a training with other parameters than the training's run has."""
    sampling = ", ".join(f"{key} {_code(run.params[key])}" for key in SAMPLING if key in run.params)
    lines = [
        f"**Evaluation** of the training {_code(training.name)}, run {_code(training.id)}",
        f"**With** {sampling}" if sampling else "",
        _result(run.metrics),
        _origin(run.tags),
    ]
    return _page([line for line in lines if line], training, [])


def experiment_commands(name: str) -> list[str]:
    """Commands that restore a DVC experiment in the workspace, its outs from DVC's cache."""
    return [f"dvc exp apply {name}", "dvc repro"]


def repeat_commands(run: TrackedRun) -> list[str]:
    """Commands that train a run again from its commit and parameters; [] if it has no commit."""
    commit = run.tags.get("commit")
    if not commit:
        return []
    download = f"mlflow artifacts download -r {run.id} -a"
    patch = [f"{download} uncommitted.patch -d .", "git apply uncommitted.patch"]
    return [
        f"git checkout {commit}",
        *(patch if run.tags.get("dirty") == "true" else []),
        f"{download} params.yaml -d .",
        "dvc repro  # trains again, unless DVC's cache has the result",
    ]


def _page(facts: list[str], training: TrackedRun, more: list[str]) -> str:
    lineage = f"python -m reprogpt lineage {training.id}"
    asked = ["To restore it (the first command checks the repository as it is now):", ""]
    return "\n".join([*(f"- {fact}" for fact in facts), "", *asked, *_commands([lineage]), *more]).rstrip() + "\n"


def _commands(lines: list[str]) -> list[str]:
    return ["```", *lines, "```"] if lines else []


def _corpus(tags: Mapping[str, str]) -> str:
    source, digest = tags.get("corpus.path") or tags.get("corpus.url"), tags.get("corpus.sha256")
    parts = [_code(PurePosixPath(source).name)] if source else []
    parts += [f"sha256 {_code(digest)}"] if digest else []
    parts += [f"{int(tags[key]):,} {key[7:]} tokens" for key in ("tokens.training", "tokens.validation") if key in tags]
    return f"**Corpus** {', '.join(parts)}" if parts else ""


def _schedule(run: TrackedRun) -> str:
    """From the tags with numbers of steps, and train's parameters."""
    tags, params = run.tags, run.params
    steps = [f"{int(tags['total_steps']):,} steps"] if "total_steps" in tags else []
    steps += [f"{int(tags['warmup_steps']):,} of them warmup"] if "warmup_steps" in tags else []
    steps += [f"n_epochs {params['n_epochs']}"] if "n_epochs" in params else []
    rates = [f"{key} {params[key]}" for key in ("initial_lr", "peak_lr") if key in params]
    fall = params.get("lr_decay")
    rates += [f"{fall} decay to min_lr {params.get('min_lr', '?')}"] if fall and fall != "none" else []
    rates += ["constant after warmup"] if fall == "none" else []
    return f"**Schedule** {', '.join(steps + rates)}" if steps + rates else ""


def _model(run: TrackedRun) -> str:
    size = run.tags.get("num_parameters")
    parts = [f"{int(size):,} parameters"] if size else []
    parts += [f"{key} {run.params[key]}" for key in ("n_layers", "n_heads", "emb_dim") if key in run.params]
    parts += [f"context_length {run.params['context_length']}"] if "context_length" in run.params else []
    if run.params.get("keep") == "best" and "weights.step" in run.tags:
        parts.append(f"weights of step {run.tags['weights.step']}, the evaluation with the lowest val_loss")
    start = run.tags.get("started_from_sha256")
    parts += [f"initialized from weights with sha256 {_code(start)}"] if start else []
    return f"**Model** {', '.join(parts)}" if parts else ""


def _result(metrics: Mapping[str, float]) -> str:
    found = [f"{key} {metrics[key]:.4g}" for key in RESULTS if key in metrics]
    return f"**Result** {', '.join(found)}" if found else ""


def _origin(tags: Mapping[str, str]) -> str:
    parts = [f"DVC experiment {_code(tags['dvc.experiment'])}"] if "dvc.experiment" in tags else []
    parts += [f"commit {_code(tags['commit'])}"] if "commit" in tags else []
    parts += ["with the edits of its artifact `uncommitted.patch`"] if tags.get("dirty") == "true" else []
    return f"**From** {', '.join(parts)}" if parts else ""


def _code(text: str) -> str:
    """As a Markdown code span: a name may hold an underscore or a star."""
    return "`" + text.replace("`", "'") + "`"
