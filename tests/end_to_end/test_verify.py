"""verify on runs that really ran. Tests run in their order; the slow ones train."""

import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from reprogpt.cli.main import run
from reprogpt.errors import PipelineError
from reprogpt.numerics.env_vars import supports_portable
from tests.end_to_end.workspace import Workspace, make_workspace

Command = Callable[..., tuple[int, str]]
# A team's, which is not rerun: it needs what git does not track, and makes other bits each time.
OWN_STAGE = """\
  report:
    foreach: [en, de]
    do:
      cmd: cat .git/HEAD > report-${item}.txt && date +%N >> report-${item}.txt
      params: [{params.yaml: [seed]}]
      deps: [data/metrics/eval.json]
      outs: ["report-${item}.txt"]
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the clone's corpus lies."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Workspace:
    """A clone with tokens and a stage of its own; dvc.lock still holds the project's own training."""
    made = make_workspace(tmp_path_factory.mktemp("clone"), cache, n_epochs=1)
    pipeline = made.path / "dvc.yaml"
    pipeline.write_text(pipeline.read_text("utf-8").replace("stages:\n", f"stages:\n{OWN_STAGE}", 1), "utf-8")
    # A cache named by its full path, as a person's own settings may: the temporary clone must not write to it.
    with (made.path / ".dvc/config").open("a", encoding="utf-8") as settings:
        settings.write(f"    dir = {made.path / '.dvc/cache'}\n")
    made.succeed("dvc", "repro", "tokenize")
    return made


@pytest.fixture(scope="module")
def trained(tokenized: Workspace) -> Workspace:
    """The same after all stages."""
    tokenized.succeed("dvc", "repro")
    return tokenized


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def verify(
    tokenized: Workspace, temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run `reprogpt verify ...` in the clone, here for speed: its exit code and what it prints.

    Whatever comes of it, the clone and all that it keeps must be as before, and nothing must be left over.
    """
    monkeypatch.chdir(tokenized.path)
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    # Both lead to the clone, and neither may be followed by the rerun.
    monkeypatch.setenv("DVC_ROOT", str(tokenized.path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tokenized.path / 'mlflow.db'}")
    for name in ("REPROGPT_CACHE", "OMP_NUM_THREADS", "GIT_CONFIG_GLOBAL"):
        monkeypatch.setenv(name, tokenized.env[name])

    def act(*arguments: str) -> tuple[int, str]:
        before = everything(tokenized)
        monkeypatch.setattr(sys, "argv", ["reprogpt", "verify", *arguments])
        try:
            code = run()
        finally:
            assert changed(tokenized, before) == []
            assert list(temporary.glob("reprogpt-*")) == []
        assert isinstance(code, int)
        return code, capsys.readouterr().out

    return act


def everything(workspace: Workspace) -> dict[str, bytes]:
    """Every file of the clone with its bytes, those of git, DVC and MLflow included.

    Not .dvc/tmp, where DVC's background process writes when it pleases.
    """
    paths = (path for path in workspace.path.rglob("*") if path.is_file())
    files = {path.relative_to(workspace.path).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(".dvc/tmp/")}


def changed(workspace: Workspace, before: dict[str, bytes]) -> list[str]:
    """The files of the clone that came, went or hold other bytes."""
    after = everything(workspace)
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def rows(output: str) -> list[tuple[str, str, str]]:
    """status, out and recorded digest of each row of the table."""
    return re.findall(r"^  (same|DIFFERS|missing) +(\S+) +(\S+)$", output, flags=re.MULTILINE)


def test_a_stage_gives_the_same_bits_again(tokenized: Workspace, verify: Command) -> None:
    code, output = verify("--stage", "tokenize")
    assert code == 0
    recorded = {out["path"]: out["md5"] for out in tokenized.lock()["tokenize"]["outs"]}
    assert rows(output) == [("same", path, digest) for path, digest in recorded.items()]
    assert output.endswith("\nthe same: all 3 outs of stage tokenize have the digests that dvc.lock records\n")


def test_another_text_at_the_same_address_is_noticed(tokenized: Workspace, cache: Path, verify: Command) -> None:
    text = cache / "corpus.txt"
    whole = text.read_text("utf-8")
    text.write_text(whole + "More.", "utf-8")
    code, output = verify("--stage", "fetch")
    text.write_text(whole, "utf-8")
    assert code == 1
    assert [path for status, path, _ in rows(output) if status == "DIFFERS"] == [
        "data/corpus/raw.txt",
        "data/corpus/source.json",
    ]
    assert "the difference begins at fetch\nanother text was read (recorded -> here)\n" in output
    assert len(re.findall(r"\(sha256 [0-9a-f]{12}\)", output)) == 2


def test_a_workspace_that_is_not_as_recorded_is_refused(tokenized: Workspace, verify: Command) -> None:
    with pytest.raises(PipelineError, match=r"param n_epochs: 15 -> 1  \(train\)"):
        verify()
    tokens = tokenized.path / "data/tokens/val.npy"
    tokens.rename(tokenized.path / "away")
    with pytest.raises(PipelineError, match=r"dep data/tokens/val.npy: not here  \(evaluate\)[^%]*`dvc checkout`"):
        verify("--stage", "evaluate")
    (tokenized.path / "away").rename(tokens)
    code = tokenized.path / "src/reprogpt/data/tokens.py"
    whole = code.read_bytes()
    code.write_bytes(whole + b"# edited\n")
    done = tokenized.run("python", "-m", "reprogpt", "verify", "--stage", "tokenize")
    code.write_bytes(whole)
    assert (done.returncode, done.stdout) == (2, "")
    assert "dep src/reprogpt/data/tokens.py: other contents than recorded  (tokenize)" in done.stderr
    assert "Traceback" not in done.stderr and "Running stage" not in done.stderr


def test_a_stage_that_fails_is_no_result(tokenized: Workspace, cache: Path, verify: Command) -> None:
    (cache / "corpus.txt").rename(cache / "away")
    with pytest.raises(PipelineError, match=r"the rerun failed: `dvc repro .*--single-item fetch`"):
        verify("--stage", "fetch")
    (cache / "away").rename(cache / "corpus.txt")


@pytest.mark.slow
def test_the_whole_run_gives_the_same_bits_again(trained: Workspace, verify: Command) -> None:
    code, output = verify()
    assert code == 0
    recorded = [(path, digest) for path, digest in trained.out_digests().items() if path.startswith("data/")]
    assert [(path, digest) for _, path, digest in rows(output)] == recorded
    assert all(len(line) <= 80 for line in output.splitlines())
    assert output.endswith("\n\nthe same: all 21 outs of 6 stages have the digests that dvc.lock records\n")
    assert len(trained.runs()) == 1


@pytest.mark.slow
@pytest.mark.skipif(not supports_portable(), reason="elsewhere the bits depend on the number of threads")
def test_another_number_of_threads_gives_the_same_bits(
    trained: Workspace, verify: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    code, output = verify("--stage", "train")
    assert code == 0
    assert "the same: all 4 outs of stage train have the digests that dvc.lock records\n" in output
    assert "threads" not in output


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(trained: Workspace, temporary: Path) -> None:
    before = everything(trained)
    command = f"TMPDIR={temporary} exec python -m reprogpt verify --stage train 2>&1"
    process = trained.start("sh", "-c", command)
    try:
        assert process.stdout is not None
        while "> python -m stages.train" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stdout.read().endswith("\ninterrupted\n")
    finally:
        process.kill()
        process.stdout.close()
    assert list(temporary.glob("reprogpt-*")) == []
    assert changed(trained, before) == []
