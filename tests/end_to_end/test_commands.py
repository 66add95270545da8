"""compare and lineage on trainings that really ran. Tests run in their order."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.cli import cli as mlflow_program

from reprogpt.cli.main import run
from reprogpt.dvc.lock import recorded_inputs
from reprogpt.dvc.pipeline import run_key_of
from reprogpt.errors import PipelineError
from tests.end_to_end.workspace import Workspace, make_workspace

pytestmark = pytest.mark.slow  # the comparison itself is tested in test_compare.py

Command = Callable[..., tuple[int, str]]
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # every git knows it


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone after `dvc repro`, and after training once more by force."""
    made = make_workspace(tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("cache"), n_epochs=1)
    made.succeed("git", "rm", "-q", "dvc.lock")  # the project's own: here, the first commit records no result
    made.commit("no result")
    made.succeed("dvc", "repro")
    made.succeed("dvc", "repro", "--force", "--single-item", "train")
    return made


@pytest.fixture(scope="module")
def thrice(twice: Workspace) -> Workspace:
    """The same, committed, and then trained with another rate and not evaluated."""
    twice.commit("result")
    twice.set_params(peak_lr=0.002)
    twice.succeed("dvc", "repro", "train")
    return twice


@pytest.fixture
def command(twice: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `reprogpt ...` in the clone, here for speed: its exit code and what it prints."""
    monkeypatch.chdir(twice.path)

    def act(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["reprogpt", *arguments])
        code = run()
        assert isinstance(code, int)
        return code, capsys.readouterr().out

    return act


def test_the_same_training_twice_is_identical_to_the_bit(twice: Workspace, command: Command) -> None:
    first, second = (recorded.info.run_id for recorded in twice.runs())
    code, output = command("compare", first[:8], second)
    assert code == 0
    name = twice.runs()[0].info.run_name
    assert output == f"A  {first}  {name}  FINISHED\nB  {second}  {name}  FINISHED\n\nidentical to the bit\n"


def test_every_link_of_a_fresh_result_holds(twice: Workspace, command: Command) -> None:
    code, output = command("lineage")
    assert code == 0
    digests = twice.out_digests()
    assert len(digests) == 21
    for path, digest in digests.items():
        assert f"  holds     {path:<28}  {digest}\n" in output
    assert "DIFFERS" not in output and "not here" not in output
    for recorded in twice.runs():
        assert f"  {recorded.info.run_id}  FINISHED  {recorded.info.run_name}  corpus.txt\n" in output
        assert f"  holds     all 5                         run {recorded.info.run_id}\n" in output
    assert all(len(line) <= 80 for line in output.splitlines())
    assert output.endswith("\nevery link that can be checked holds\n")


def test_the_key_from_dvc_lock_is_the_one_that_train_wrote(twice: Workspace) -> None:
    summary = json.loads((twice.path / "data/metrics/train.json").read_text("utf-8"))
    key = run_key_of(recorded_inputs(twice.lock()["train"]))
    assert [key] == summary["run_key"] == [twice.runs()[0].data.tags["run_key"]]


def test_a_tampered_file_breaks_its_link_and_those_of_its_readers(twice: Workspace, command: Command) -> None:
    path = twice.path / "data/tokens/val.npy"
    whole = path.read_bytes()
    path.unlink()  # a hard link into DVC's cache, which must stay whole
    path.write_bytes(whole[:-2] + b"\0\0")
    code, output = command("lineage")
    path.unlink()
    path.write_bytes(whole)
    assert code == 1
    broken = re.findall(r"^  DIFFERS   (.*?)  ", output, flags=re.MULTILINE)
    assert broken == ["data/tokens/val.npy", "dep data/tokens/val.npy", "dep data/tokens/val.npy"]
    assert output.endswith("\nNOT every link holds: see DIFFERS\n")
    assert command("lineage")[0] == 0


def test_another_rate_differs_from_the_step_where_it_does(thrice: Workspace, command: Command) -> None:
    _, second, third = thrice.runs()
    done = thrice.run("python", "-m", "reprogpt", "compare", second.info.run_id, third.info.run_name)
    assert (done.returncode, done.stderr) == (1, "")
    assert "\nparameters\n  peak_lr: 0.001 -> 0.002\n" in done.stdout
    assert "\nfirst step that differs: 1\n  lr: 0.001 -> 0.002\n" in done.stdout
    table = done.stdout.split("step  |A - B|\n")[1].split("\n\n")[0]
    assert [int(line.split()[0]) for line in table.splitlines()] == [1, 2, 3, 5, 8]
    assert second.data.tags["weights.sha256"] in done.stdout and third.data.tags["weights.sha256"] in done.stdout
    assert done.stdout.endswith("\nthe runs differ\n")


def test_the_newest_of_one_name_is_taken_with_a_remark(thrice: Workspace, command: Command) -> None:
    _, second, third = thrice.runs()
    output = command("compare", second.info.run_name, third.info.run_id)[1]
    assert output.startswith(f"A  {second.info.run_id}")
    assert f"2 runs are named {second.info.run_name}; this is the newest" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "unknown", "HEAD"), "no MLflow run has the id or name unknown"),
        (("compare", "{name}", "{name}"), "are the same run; runs of one name are told apart by id"),
        (("lineage", "unknown"), "unknown is no MLflow run .*no DVC experiment and no git"),
        (("lineage", "{empty}"), "commit [0-9a-f]{40} has no dvc.lock"),
    ],
)
def test_an_argument_that_names_nothing_is_an_error_of_the_user(
    thrice: Workspace, command: Command, arguments: tuple[str, ...], message: str
) -> None:
    name = thrice.runs()[0].info.run_name
    identity = ("-c", "user.name=t", "-c", "user.email=t@t.invalid")
    empty = thrice.succeed("git", *identity, "commit-tree", "-m", "empty", EMPTY_TREE).strip()
    with pytest.raises(PipelineError, match=message):
        command(*(word.format(name=name, empty=empty) for word in arguments))


def test_a_result_that_was_not_evaluated_again_does_not_hold(thrice: Workspace, command: Command) -> None:
    code, output = command("lineage")
    assert code == 1
    broken = re.findall(r"^  DIFFERS   (.*?)  ", output, flags=re.MULTILINE)
    of_evaluate = ["dep data/metrics/train.json", "dep data/model"]
    of_plot = ["dep data/metrics/history.csv", "dep data/metrics/train.json"]
    assert broken == [*of_evaluate, *of_plot, "weights with these numbers"]


def test_numbers_saved_beside_other_weights_are_noticed(thrice: Workspace, command: Command) -> None:
    """`dvc exp save` records the old evaluation as one of the new weights: dvc.lock is consistent, and wrong."""
    thrice.succeed("dvc", "exp", "save", "--name", "unevaluated")
    code, output = command("lineage", "unevaluated")
    assert code == 1
    assert "chain recorded in dvc.lock of DVC experiment unevaluated" in output
    assert re.findall(r"^  DIFFERS   (.*?)  ", output, flags=re.MULTILINE) == ["weights with these numbers"]
    assert "to restore it\n  dvc exp apply unevaluated\n  dvc repro\n" in output


def test_an_earlier_run_is_found_in_its_commit_and_restored(thrice: Workspace, command: Command) -> None:
    first = thrice.runs()[0]
    commit = thrice.succeed("git", "rev-parse", "HEAD").strip()
    code, output = command("lineage", first.info.run_id)
    assert code == 0
    assert output.startswith(f"MLflow run {first.info.run_id}, {first.info.run_name}, FINISHED\n")
    assert f"  commit      {first.data.tags['commit']}\n" in output
    assert f"  held by     commit {commit}\n" in output
    assert "not here" not in output
    thrice.succeed("git", "checkout", "--", ".")
    commands = output.split("to restore it\n")[1].split("\n\n")[0].splitlines()
    assert [line.split() for line in commands] == [["git", "checkout", commit], ["dvc", "checkout"]]
    for line in commands:
        thrice.succeed(*line.split())
    code, output = command("lineage", first.info.run_id)
    assert code == 0
    assert "held by     the workspace" in output and "nothing to do: it is the workspace's state" in output


def test_for_a_run_that_no_revision_holds_the_commands_repeat_it(thrice: Workspace, command: Command) -> None:
    third = thrice.runs()[-1]
    thrice.succeed("dvc", "exp", "remove", "unevaluated")
    code, output = command("lineage", third.info.run_name)
    assert code == 0
    assert "nothing here: no dvc.lock found has this run key" in output
    assert output.endswith("\nnothing here to check it against\n")
    commands = output.split("to restore it\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[:2] for line in commands] == [["git", "checkout"], ["mlflow", "artifacts"], ["dvc", "repro"]]
    checkout, download, repro = (line.partition("#")[0].split() for line in commands)
    thrice.succeed(*checkout)
    mlflow_program.main(download[1:], standalone_mode=False)  # the program `mlflow`, here for speed
    thrice.succeed(*repro)
    assert "held by     the workspace" in command("lineage", third.info.run_name)[1]


def test_a_commit_without_its_data_is_not_reported_as_broken(thrice: Workspace, command: Command) -> None:
    cache = thrice.path / ".dvc/cache"
    cache.rename(thrice.path / "away")
    code, output = command("lineage", "main")
    (thrice.path / "away").rename(cache)
    assert code == 0
    assert re.search(r"^  not here  data/model  ", output, flags=re.MULTILINE)
    assert re.search(r"^  holds     data/metrics/eval.json  ", output, flags=re.MULTILINE)


def test_lineage_creates_no_store(
    thrice: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nowhere.db")
    assert command("lineage", "main")[0] == 0
    assert not (thrice.path / "nowhere.db").exists()
