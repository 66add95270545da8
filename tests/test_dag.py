"""dvc.yaml lists all that the stages read and write, and imports point one way."""

import ast
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from reprogpt import paths
from reprogpt.dvc import code_patch
from reprogpt.dvc.pipeline import out_paths
from reprogpt.params.loader import Params
from reprogpt.serving.mlflow_model import CODE, LIBRARIES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src/reprogpt"
STAGES: dict[str, dict[str, Any]] = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
# They observe a stage and don't change what it writes.
OBSERVERS = {file for path in map(ROOT.joinpath, code_patch.OBSERVERS) for file in (path, *path.rglob("*.py"))}
BASE = {"numerics", "params", ""}  # "": the files beside the folders
LOWEST = {"model", "data", "process", "dvc", "numerics", "params"}  # they import no numerics, and params only for dvc
TABLE_ROW = re.compile(r"(?m)^\| `(\w+)/` \|[^|]*\| ([^|]*) \|$")


def allowed_imports() -> dict[str, set[str]]:
    """Of each folder, those that it may import, from the table of CONTRIBUTING.md."""
    layout = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Layout")[2].partition("\n## ")[0]
    listed = {folder: set(re.findall(r"`(\w+)`", names)) for folder, names in TABLE_ROW.findall(layout)}
    allowed = {folder: names | ({""} if folder in LOWEST else BASE) for folder, names in listed.items()}
    return allowed | {"": {""}, "dvc": allowed["dvc"] | {"params"}}


ALLOWED = allowed_imports()
# The same inside tracking/: what is recorded, how it reaches MLflow, the MLflow store.
ALLOWED_IN_TRACKING: dict[str, set[str]] = {"log": {"deliver", "store"}, "deliver": {"store"}, "store": set()}
# MLflow runs it, with copies of the files that it imports; nothing else imports it.
SERVED = PACKAGE / "serving/text_generator.py"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "stages").glob("*.py")])
PATHS = {name: value for name, value in vars(paths).items() if isinstance(value, Path)}


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
    """Files that determine what a stage writes: its imports, direct or not, without observers and empty files."""
    seen = imported_from(ROOT / f"stages/{stage}.py", ROOT / "stages/__init__.py", apart_from=OBSERVERS)
    return {path.relative_to(ROOT).as_posix() for path in seen if path.stat().st_size}


def test_the_code_patch_covers_all_that_the_stages_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    imported = imported_from(*(ROOT / "stages").glob("*.py"), apart_from=set())
    code = {path.relative_to(ROOT).as_posix() for path in imported if path.stat().st_size}
    assert code - set(code_patch.stage_code()) == set()


def unit(path: Path) -> str:
    """stages, a folder of the package, or "" for the files beside the folders."""
    parts = path.relative_to(ROOT).parts
    if parts[0] == "stages":
        return "stages"
    return parts[2] if len(parts) > 3 else ""


def files_of(dep: str) -> set[str]:
    """A code dependency's files: itself, or those of a folder that are not empty."""
    path = ROOT / dep
    files = {path} if path.is_file() else set(path.glob("*.py"))
    return {file.relative_to(ROOT).as_posix() for file in files if file.stat().st_size}


def test_the_pipeline_has_six_stages_in_this_order() -> None:
    assert list(STAGES) == ["fetch", "split", "tokenize", "train", "evaluate", "plot"]


@pytest.mark.parametrize("stage", STAGES)
def test_code_among_the_deps_is_the_import_closure(stage: str) -> None:
    code = {dep for dep in STAGES[stage]["deps"] if dep.startswith(("src/", "stages/"))}
    assert set().union(*map(files_of, code)) == closure(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_is_listed_where_all_of_it_is_imported(stage: str) -> None:
    deps = STAGES[stage]["deps"]
    for folder in (path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"):
        name = folder.relative_to(ROOT).as_posix()
        is_whole = len(files_of(name)) > 1 and files_of(name) <= closure(stage)
        assert (name in deps) == is_whole, name
        assert not (is_whole and any(dep.startswith(f"{name}/") for dep in deps))


@pytest.mark.parametrize("stage", STAGES)
def test_params_listed_are_the_fields_validated(stage: str) -> None:
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
    names: list[str] = []
    for name, stage in STAGES.items():
        written = {out for earlier in names for out in out_paths(STAGES[earlier])}
        inputs = {*stage.get("params", []), *stage["deps"]} | set().union(*map(files_of, stage["deps"]))
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
        ("src/reprogpt/plotting/training_figures.py", ["plot"]),
        ("src/reprogpt/plotting/style.py", ["plot"]),
        ("src/reprogpt/data/download.py", ["fetch", "split", "tokenize", "train", "evaluate", "plot"]),
        ("src/reprogpt/data/windows.py", ["train", "evaluate", "plot"]),
        ("src/reprogpt/data/tokenize.py", ["tokenize", "train", "evaluate", "plot"]),
        ("src/reprogpt/messages.py", []),
        ("src/reprogpt/progress.py", []),
        ("src/reprogpt/training/loop.py", ["train", "evaluate", "plot"]),
        ("src/reprogpt/evaluation/samples.py", ["evaluate"]),
        ("src/reprogpt/tracking/deliver/writer.py", []),
    ],
)
def test_a_change_reruns_what_depends_on_it(changed: str, stages: list[str]) -> None:
    assert rerun_by(changed) == stages


@pytest.mark.parametrize("stage", STAGES)
def test_paths_in_the_script_are_deps_or_outs(stage: str) -> None:
    """Both ways: every path that the script imports is declared, every out is a path that it imports."""
    names = {name.rpartition(".")[2] for name in imported_modules(ROOT / f"stages/{stage}.py") if ".paths." in name}
    used = {str(PATHS[name]) for name in names}
    outs, deps = set(out_paths(STAGES[stage])), set(STAGES[stage]["deps"])
    folders = {path for path in used if not Path(path).suffix}
    outs |= {folder for folder in folders if any(out.startswith(f"{folder}/") for out in outs)}
    assert {out for out in outs if not any(out.startswith(f"{folder}/") for folder in folders)} <= used <= outs | deps


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_of_data_are_written_once(path: Path) -> None:
    """In paths.py. Messages may name them."""
    if path.name == "paths.py":
        return
    assert not re.search(r'Path\("data/', path.read_text("utf-8"))


@pytest.mark.parametrize("stage", ["tokenize", "train", "evaluate", "plot"])
def test_stages_that_use_libraries_depend_on_their_pinned_versions(stage: str) -> None:
    assert "requirements.lock" in STAGES[stage]["deps"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_allowed_directions(path: Path) -> None:
    here = unit(path)
    if path.name == "__main__.py":
        return
    reached = {unit(other) for other in own_files(path) if other.name != "__init__.py"} - {here}
    allowed = ALLOWED[here] | ({"model", "data"} if path == SERVED else set())
    assert reached <= allowed, f"{here or 'the base'} must not import {reached - allowed}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "tracking").glob("*/*.py")), ids=lambda path: path.stem)
def test_imports_in_tracking_follow_the_allowed_directions(path: Path) -> None:
    here = path.parent.name
    siblings = {other.parent.name for other in own_files(path) if other.parent.parent == PACKAGE / "tracking"}
    assert siblings - {here} <= ALLOWED_IN_TRACKING[here]


def test_the_table_of_the_layout_has_every_folder() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(ALLOWED) == folders | {"stages", ""}


def test_the_plot_stage_draws_its_own_training_only() -> None:
    """The figures come from its deps, not from MLflow, where other experiments are."""
    data = {dep for dep in STAGES["plot"]["deps"] if dep.startswith("data/")}
    assert data == {"data/metrics/history.csv", "data/metrics/train.json"}


def test_a_logged_model_has_the_code_and_the_list_of_libraries_that_it_needs() -> None:
    files = imported_from(SERVED, apart_from=set())
    assert {PACKAGE / name for name in CODE} == files - {SERVED}
    modules = {name.split(".")[0] for path in files for name in imported_modules(path)}
    assert modules - set(sys.stdlib_module_names) - {"reprogpt", "tiktoken_ext"} == set(LIBRARIES)


@pytest.mark.parametrize(
    ("library", "files"),
    [
        (
            "mlflow",
            {
                "tracking/store/client.py",
                "tracking/store/errors.py",
                "tracking/store/models.py",
                "tracking/deliver/writer.py",
                "tracking/log/system_metrics.py",
                "serving/mlflow_model.py",
                "serving/text_generator.py",
            },
        ),
        (
            "matplotlib",
            {"plotting/style.py", "plotting/training_figures.py", "plotting/decide_figures.py"},
        ),
        ("requests", {"data/download.py"}),
        ("scipy", set()),
        ("zstandard", {"data/decompress.py"}),
        ("charset_normalizer", {"data/charset.py"}),
        ("pickle", set()),
    ],
)
def test_a_library_is_imported_only_in_its_named_files(library: str, files: set[str]) -> None:
    found = {
        path.relative_to(ROOT / "src/reprogpt").as_posix() if "src" in path.parts else path.name
        for path in SOURCES
        if any(name.split(".")[0] == library for name in imported_modules(path))
    }
    assert found == files


@pytest.mark.parametrize("stage", STAGES)
def test_uncached_outs_are_metrics_or_plots(stage: str) -> None:
    """Any other uncached out makes DVC skip its run cache: a value tried and put back would train again."""
    outs = [out for out in STAGES[stage].get("outs", []) if isinstance(out, dict)]
    assert not any(options.get("cache") is False for out in outs for options in out.values())


def test_init_files_of_folders_are_empty() -> None:
    """So that importing a file of a folder runs no other."""
    assert [path for path in PACKAGE.rglob("*/__init__.py") if path.read_bytes()] == []
