"""What `sync` asks before it makes a run of data/model: that all records agree on how it was made."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from reprogpt.dvc.digest import dvc_md5
from reprogpt.dvc.pipeline import out_paths, run_key, stage_definition, stage_inputs
from reprogpt.dvc.revisions import Workspace
from reprogpt.paths import HISTORY, MODEL, TRAIN_SUMMARY
from reprogpt.runs.rebuild import UnconfirmedError, _confirmed_key
from tests.git import git

CODE, TOKENS, WEIGHTS = Path("src/loop.py"), Path("data/tokens/train.npy"), MODEL / "model.safetensors"
DEFINITION = {
    "cmd": "fit",
    "deps": [str(CODE), str(TOKENS)],
    "params": ["peak_lr"],
    "outs": [str(MODEL), str(HISTORY), str(TRAIN_SUMMARY)],
}


def dvc_commit() -> None:
    """As `dvc commit -f` does: record the files as they are."""
    inputs = stage_inputs("train")
    deps = [{"path": path, "md5": md5} for path, md5 in inputs["deps"].items()]
    outs = [{"path": path, "md5": dvc_md5(Path(path))} for path in out_paths(stage_definition("train"))]
    entry = {"cmd": "fit", "deps": deps, "params": {"params.yaml": inputs["params"]}, "outs": outs}
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"train": entry}}))


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository in which a training has ended; its run key."""
    monkeypatch.chdir(tmp_path)
    for path in (CODE, TOKENS, WEIGHTS, HISTORY):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    Path("dvc.yaml").write_text(json.dumps({"stages": {"train": DEFINITION}}))
    Path("params.yaml").write_text("peak_lr: 0.0005\n")
    TRAIN_SUMMARY.write_text(json.dumps({"run_key": [run_key()]}))
    dvc_commit()
    return run_key()


def change_param() -> None:
    Path("params.yaml").write_text("peak_lr: 0.002\n")


def change_code() -> None:
    CODE.write_text("# a comment")


def refusal() -> str:
    with pytest.raises(UnconfirmedError) as caught:
        _confirmed_key(Workspace())
    return str(caught.value)


def test_files_as_they_were_recorded_are_confirmed(key: str) -> None:
    assert _confirmed_key(Workspace()) == key


@pytest.mark.parametrize("change", [change_param, change_code])
def test_what_dvc_commit_recorded_without_training_is_not(change: Callable[[], None], key: str) -> None:
    change()
    dvc_commit()
    lines = refusal().splitlines()
    assert lines[1:-1] == [f"  data/metrics/train.json: recorded {run_key()}, found {key}"]
    assert lines[-1].startswith("`dvc repro -f train` ")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (change_param, "param peak_lr: recorded 0.0005, found 0.002"),
        (change_code, r"dep src/loop.py: recorded \w{32}, found \w{32}"),
        (lambda: WEIGHTS.write_text("other"), r"data/model: recorded \w{32}.dir, found \w{32}.dir"),
        (lambda: TOKENS.unlink(), r"dep data/tokens/train.npy: recorded \w{32}, found None"),
    ],
    ids=["param", "code", "weights", "tokens"],
)
def test_files_that_differ_from_dvc_lock_are_not(change: Callable[[], object], line: str) -> None:
    change()
    lines = refusal().splitlines()
    assert re.fullmatch(f"  {line}", lines[1]) and len(lines) == 3
    assert lines[-1].startswith("`dvc repro` ")


def test_weights_that_were_exchanged_and_committed_to_dvc_are_not(key: str) -> None:
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "trained")
    assert _confirmed_key(Workspace()) == key
    WEIGHTS.write_text("of another training")
    dvc_commit()
    git("commit", "-qam", "exchanged")
    assert re.search(r"\n  data/model in git: recorded \w{32}.dir, found \w{32}.dir\n", refusal())


def test_without_a_record_nothing_is() -> None:
    Path("dvc.lock").unlink()
    assert "train.json: recorded None" in refusal()
