"""dvc.yaml says all that the code reads and writes, and dependencies point one way."""

import ast
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from reprogpt.params import Params
from reprogpt.pipeline import out_paths
from reprogpt.record.packing import CODE, LIBRARIES

ROOT = Path(__file__).resolve().parent.parent
STAGES: dict[str, dict[str, Any]] = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
# record/ watches and does not decide; only its figures, and how they look, are a stage's out.
DECIDING = {"figures.py", "drawing.py"}
OBSERVERS = {path for path in (ROOT / "src/reprogpt/record").glob("*.py") if path.name not in DECIDING}
ALLOWED = {
    "stages": {"record", "training", "model", "corpus", "params", ""},
    "commands": {"record", "model", "corpus", "params", ""},
    "record": {"params", ""},
    "training": {"model", "corpus", "params", ""},
    "model": {""},
    "corpus": {""},
    "params": {""},
}
# MLflow runs it, with a copy of the files that it imports; nothing of ours imports it.
SERVED = ROOT / "src/reprogpt/record/serving.py"
SOURCES = sorted([*(ROOT / "src/reprogpt").rglob("*.py"), *(ROOT / "stages").glob("*.py")])


def imported_modules(path: Path) -> set[str]:
    """Names of everything a file imports, with `from a import b` giving both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def own_files(path: Path) -> set[Path]:
    """Our files that Python runs when it imports what `path` imports, parents' __init__ included."""
    found = set()
    for name in imported_modules(path):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            for base in (ROOT / "src", ROOT):
                module = base.joinpath(*parts[:end])
                found |= {file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file()}
    return found


def imported_from(*paths: Path, apart_from: set[Path]) -> set[Path]:
    """These files and those of ours that they import, direct or not."""
    seen: set[Path] = set()
    waiting = set(paths)
    while waiting:
        path = waiting.pop()
        if path not in seen and path not in apart_from:
            seen.add(path)
            waiting |= own_files(path)
    return seen


def closure(stage: str) -> set[str]:
    """Files that decide what a stage writes: its imports, direct or not, observers and empty files aside."""
    seen = imported_from(ROOT / f"stages/{stage}.py", ROOT / "stages/__init__.py", apart_from=OBSERVERS)
    return {path.relative_to(ROOT).as_posix() for path in seen if path.stat().st_size}


def wing(path: Path) -> str:
    """stages, a folder of the package, or "" for the files beside the folders."""
    parts = path.relative_to(ROOT).parts
    return "stages" if parts[0] == "stages" else (parts[2] if len(parts) == 4 else "")


def test_the_stages_are_the_six_in_order():
    assert list(STAGES) == ["fetch", "split", "tokenize", "train", "evaluate", "plot"]


@pytest.mark.parametrize("stage", STAGES)
def test_code_among_the_deps_is_the_import_closure(stage):
    code = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert code == closure(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_params_listed_are_the_fields_validated(stage):
    listed = set(STAGES[stage].get("params", []))
    if stage == "plot":
        assert not listed
        return
    module = importlib.import_module(f"reprogpt.params.{stage}")
    classes = [
        value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__
    ]
    (cls,) = [value for value in classes if issubclass(value, Params)]
    assert listed == set(cls.model_fields)


def rerun_by(changed: str) -> list[str]:
    """Stages that a changed key or file reruns: those that list it, and all that read what they write."""
    names = []
    for name, stage in STAGES.items():
        written = {out for earlier in names for out in out_paths(STAGES[earlier])}
        inputs = {*stage.get("params", []), *stage["deps"]}
        if changed in inputs or inputs & written:
            names.append(name)
    return names


@pytest.mark.parametrize(
    ("changed", "stages"),
    [
        ("train_ratio", ["split", "tokenize", "train", "evaluate", "plot"]),
        ("peak_lr", ["train", "evaluate", "plot"]),
        ("init_from_sha256", ["train", "evaluate", "plot"]),
        ("temperature", ["evaluate"]),
        ("src/reprogpt/record/figures.py", ["plot"]),
        ("src/reprogpt/record/drawing.py", ["plot"]),
        ("src/reprogpt/record/overlay.py", []),
        ("src/reprogpt/corpus/download.py", ["fetch", "split", "tokenize", "train", "evaluate", "plot"]),
        ("src/reprogpt/corpus/windows.py", ["train", "evaluate", "plot"]),
        ("src/reprogpt/record/tracking.py", []),
    ],
)
def test_a_change_reruns_what_depends_on_it(changed, stages):
    assert rerun_by(changed) == stages


@pytest.mark.parametrize("stage", STAGES)
def test_paths_in_the_script_are_deps_or_outs(stage):
    """Both ways: every data path of the script is declared, every out is a path of the script."""
    script = (ROOT / "stages" / f"{stage}.py").read_text("utf-8")
    used = set(re.findall(r'Path\("(data/[^"]+)"\)', script))
    outs, deps = set(out_paths(STAGES[stage])), set(STAGES[stage]["deps"])
    folders = {path for path in used if not Path(path).suffix}
    outs |= {folder for folder in folders if any(out.startswith(f"{folder}/") for out in outs)}
    assert {out for out in outs if not any(out.startswith(f"{folder}/") for folder in folders)} <= used <= outs | deps


@pytest.mark.parametrize("stage", ["tokenize", "train", "evaluate", "plot"])
def test_results_of_libraries_depend_on_their_pins(stage):
    assert "requirements.lock" in STAGES[stage]["deps"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_arrows(path):
    here = wing(path)
    if path.name == "__main__.py":
        return
    reached = {wing(other) for other in own_files(path) if other.name != "__init__.py"} - {here}
    allowed = {"model", "corpus", ""} if path == SERVED else ALLOWED.get(here, {"params"})
    assert reached <= allowed, f"{here or 'the base'} must not import {reached - allowed}"


def test_a_model_carries_the_code_and_names_the_libraries_that_it_runs_on():
    package = ROOT / "src/reprogpt"
    files = imported_from(SERVED, apart_from=set())
    assert {package / name for name in CODE} == files - {SERVED}
    modules = {name.split(".")[0] for path in files for name in imported_modules(path)}
    assert modules - set(sys.stdlib_module_names) - {"reprogpt", "tiktoken_ext"} == set(LIBRARIES)


def test_the_plot_stage_draws_its_own_training_alone():
    """The figures come from its deps, not from MLflow, where other experiments are."""
    data = {dep for dep in STAGES["plot"]["deps"] if dep.startswith("data/")}
    assert data == {"data/metrics/history.csv", "data/metrics/train.json"}
    names = {path.name for stage_file in DECIDING for path in own_files(ROOT / "src/reprogpt/record" / stage_file)}
    assert names <= DECIDING | {"__init__.py", "errors.py", "files.py"}


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("mlflow", {f"record/{name}.py" for name in ("store", "tracking", "logged_models", "packing", "serving")}),
        ("matplotlib", {"record/drawing.py", "record/figures.py", "record/overlay.py"}),
        ("requests", {"corpus/download.py"}),
        ("pickle", set()),
    ],
)
def test_a_library_is_imported_in_its_home_alone(library, homes):
    found = {
        path.relative_to(ROOT / "src/reprogpt").as_posix() if "src" in path.parts else path.name
        for path in SOURCES
        if any(name.split(".")[0] == library for name in imported_modules(path))
    }
    assert found == homes


@pytest.mark.parametrize("stage", STAGES)
def test_uncached_outs_are_metrics_or_plots(stage):
    """Any other uncached out makes DVC skip its run cache: a value tried and put back would train again."""
    outs = [out for out in STAGES[stage].get("outs", []) if isinstance(out, dict)]
    assert not any(options.get("cache") is False for out in outs for options in out.values())


def test_the_wings_init_files_are_empty():
    wings = [path for path in (ROOT / "src/reprogpt").glob("*/__init__.py") if path.parent.name != "params"]
    assert [path for path in wings if path.read_bytes()] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_stay_small(path):
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= 250
    if path.parent.name == "stages":
        assert len([line for line in lines if not line.startswith(("import ", "from "))]) < 40
