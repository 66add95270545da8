"""Kill a real tiny pipeline at random moments, let it finish, and compare everything with one left alone.

    python -m tools.kill_trial --kills 100 [--seed 0]

A round is a fresh clone: `dvc repro` is killed (-9) again and again, in one of three ways, and then, after `check`,
left to finish. Compared: every file under data/, dvc.lock, every MLflow point, parameter, artifact and
file of the model; that there is one run with one complete model; that nothing is left in .reprogpt; that
training resumed wherever it could.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from mlflow.entities import Run

from tests.end_to_end.workspace import Workspace, make_workspace

WAYS = ("group", "stage", "dvc")
STAGES = {"fetch": 1, "split": 1, "tokenize": 1, "train": 6, "evaluate": 2, "plot": 2}  # how often each is aimed at
TINY: dict[str, Any] = {"n_epochs": 6, "save_seconds": 0.05, "max_new_tokens": 3}
KILLS_A_ROUND = 10
MEASURED_BY_THE_CLOCK = ("tokens_per_second", "system/")  # how their names begin


@dataclass
class Round:
    """What happened to one clone. stages: which stage was running at each kill."""

    ways: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    trainings: int = 0
    resumed_from: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def line(self, number: int) -> str:
        """A row of the table."""
        ways, stages = (", ".join(f"{key} {n}" for key, n in sorted(c.items())) for c in (self.ways, self.stages))
        resumed = " ".join(map(str, self.resumed_from)) or "-"
        verdict = "; ".join(self.faults) or "all equal"
        return f"| {number} | {ways} | {stages} | {self.trainings} | {resumed} | {verdict} |"


HEADER = "| round | kills | during | starts of train | resumed at step | compared |\n|---|---|---|---|---|---|"


def kill_round(workspace: Workspace, reference: dict[str, Any], *, kills: int, chance: random.Random) -> Round:
    """Kill `dvc repro` in the clone that many times (fewer if it gets to its end first), finish it, compare.

    The kills aim at random stages, in the pipeline's order: one that is aimed at too early would be passed unhurt.
    """
    result = Round()
    aims = chance.choices(list(STAGES), list(STAGES.values()), k=kills)
    for number, aim in enumerate(sorted(aims, key=list(STAGES).index)):
        log = workspace.path.parent / f"log-{number + 1}"  # one each: an orphan goes on writing to its own
        saved, killed = _has_checkpoint(workspace), _killed(workspace, log, aim, chance, result)
        _read(log, saved, result)
        if not killed:
            break
    saved = _has_checkpoint(workspace)
    _end_orphans(workspace)
    workspace.succeed("python", "-m", "reprogpt", "check")  # as `make repro` does: a kill may cut files of DVC's own
    log = workspace.path.parent / "log-last"
    with log.open("w") as output:
        done = subprocess.run(
            ["dvc", "repro"],
            cwd=workspace.path,
            env=workspace.env,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
    _read(log, saved, result)
    if done.returncode:
        result.faults.append(f"dvc repro: exit {done.returncode}: {log.read_text()[-500:]}")
    else:
        result.faults += differences(reference, snapshot(workspace))
    return result


def _has_checkpoint(workspace: Workspace) -> bool:
    return any(workspace.path.glob(".reprogpt/checkpoints/*/checkpoint-*.json"))


def _killed(workspace: Workspace, log: Path, aim: str, chance: random.Random, result: Round) -> bool:
    """Start `dvc repro` and kill it at a random time after it has come to the stage `aim`; False if it ends before."""
    with log.open("w") as output:
        process = subprocess.Popen(
            ["dvc", "repro"],
            cwd=workspace.path,
            env=workspace.env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    come = re.compile(rf"Running stage '{aim}'|Stage '{aim}' didn't change|Stage '{aim}' is cached")
    while not come.search(log.read_text()) and process.poll() is None:
        time.sleep(0.01)
    deadline = time.monotonic() + chance.uniform(0, 8 if aim == "train" else 4)
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    if process.poll() is not None:
        return False
    way = chance.choice(WAYS)
    stage = _stage_process(process.pid)
    running = re.findall(r"Running stage '(\w+)'", log.read_text())
    result.stages[running[-1] if running and stage else "dvc itself"] += 1
    result.ways[way if stage or way != "stage" else "dvc"] += 1
    if way == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif way == "stage" and stage is not None:
        stage.kill()
    else:
        process.kill()
    process.wait(60)
    return True


def _stage_process(dvc: int) -> psutil.Process | None:
    try:
        children = psutil.Process(dvc).children(recursive=True)
        # Not a shell between DVC and the stage, whose words hold the whole command.
        return next((child for child in children if any(word.startswith("stages.") for word in child.cmdline())), None)
    except psutil.Error:
        return None


def _end_orphans(workspace: Workspace) -> None:
    """Wait until no stage that DVC has left behind works in the clone any more."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not any(_works_in(process, workspace.path) for process in psutil.process_iter()):
            return
        time.sleep(0.1)
    raise TimeoutError("a stage outlives its DVC by a minute")


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return any("stages." in word for word in process.cmdline()) and Path(process.cwd()) == folder
    except psutil.Error:
        return False


def _read(log: Path, saved: bool, result: Round) -> None:
    """Read from its output what a start of the pipeline did with its training."""
    text = log.read_text()
    if "Running stage 'train'" not in text:
        return
    result.trainings += 1
    found = re.search(r"resumed from the checkpoint at step (\d+)", text)
    if found:
        result.resumed_from.append(int(found[1]))
    elif saved and "Iter 0000" in text:
        result.faults.append("started again although there was a checkpoint")


def snapshot(workspace: Workspace) -> dict[str, Any]:
    """Everything that must be the same."""
    facts: dict[str, Any] = {f"file {name}": content for name, content in workspace.files().items()}
    facts["dvc.lock"] = (workspace.path / "dvc.lock").read_bytes()
    runs = workspace.runs()
    facts["number of runs"], facts["status"] = len(runs), [run.info.status for run in runs]
    for run in runs[:1]:
        facts |= {f"parameter {key}": value for key, value in run.data.params.items()}
        for key in {key for key in run.data.metrics if not key.startswith(MEASURED_BY_THE_CLOCK)}:
            points = workspace.client().get_metric_history(run.info.run_id, key)
            facts[f"metric {key}"] = sorted((point.step, point.value) for point in points)
        root = Path(run.info.artifact_uri.removeprefix("file://"))
        facts |= {f"artifact {name}": (root / name).read_bytes() for name in workspace.artifacts(run)}
        facts |= _models(workspace, run)
    for kind in ("checkpoints", "outbox"):
        facts[f"left in {kind}"] = [path.name for path in (workspace.path / ".reprogpt" / kind).glob("*")]
    return facts


def _models(workspace: Workspace, run: Run) -> dict[str, Any]:
    """What the store holds of models: files, those that are no longer in the store's lists included."""
    models = workspace.client().search_logged_models([run.info.experiment_id])
    root = workspace.path / "mlruns/models"
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != "MLmodel"]  # that has ids and times
    return {
        "models": [(model.name, model.status, model.source_run_id == run.info.run_id) for model in models],
        "models of the run": len(run.outputs.model_outputs) if run.outputs else 0,
        "files of models": sorted(path.relative_to(root).parts[2:] for path in root.rglob("*") if path.is_file()),
        **{f"model {'/'.join(path.relative_to(root).parts[2:])}": path.read_bytes() for path in paths},
    }


def differences(reference: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The names of the facts that are not equal."""
    return [name for name in sorted({**reference, **found}) if reference.get(name) != found.get(name)]


def clone(path: Path) -> Workspace:
    """A fresh clone at `path` with the tiny configuration."""
    (path / "clone").mkdir(parents=True)
    return make_workspace(path / "clone", path.parent / "cache", **TINY)


def main() -> None:
    """The whole trial, as a table; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="reprogpt-kill-"))
    alone = clone(folder / "alone")
    alone.succeed("dvc", "repro")
    reference = snapshot(alone)
    print(HEADER, flush=True)
    rounds: list[Round] = []
    while (left := arguments.kills - sum(done.ways.total() for done in rounds)) > 0:
        path = folder / f"round-{len(rounds) + 1}"
        rounds.append(kill_round(clone(path), reference, kills=min(left, KILLS_A_ROUND), chance=chance))
        print(rounds[-1].line(len(rounds)), flush=True)
        if not rounds[-1].faults:
            shutil.rmtree(path)
    kills, faults = sum(done.ways.total() for done in rounds), sum(map(len, (done.faults for done in rounds)))
    resumed = sum(len(done.resumed_from) for done in rounds)
    print(f"\n{kills} kills in {len(rounds)} rounds; training resumed {resumed} times; {faults} faults")
    if faults:
        sys.exit(f"what is left of the rounds with faults is in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
