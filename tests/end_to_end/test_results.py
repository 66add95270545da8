"""A row of the results from a run that really ran, verified in another state of the clone."""

import re
from pathlib import Path

import pytest

from reprogpt.files import file_digest
from reprogpt.numerics.env_vars import supports_portable
from tests.end_to_end.workspace import BUNDLED, make_workspace


@pytest.mark.slow
@pytest.mark.skipif(not supports_portable(), reason="elsewhere the bits depend on the number of threads")
def test_a_row_is_trained_again_from_its_commit_with_another_number_of_threads(tmp_path: Path) -> None:
    clone = make_workspace(tmp_path / "clone", tmp_path / "cache", n_epochs=1)
    clone.set_params(corpus_sha256=file_digest(BUNDLED))
    clone.commit()
    clone.env["PYTHONPATH"] = f"{clone.path / 'src'}"
    clone.succeed("dvc", "exp", "run", "--name", "other", "-S", "peak_lr=0.002", "-S", "seed=3", "evaluate")
    digits = clone.succeed("python", "-m", "tools.results", "add", "other").split()[0]
    results = clone.path / "docs/results.csv"
    results.write_text(results.read_text("utf-8").replace(",0.0,", ",0.5,", 1), "utf-8")  # val_accuracy
    # What follows the row must not matter: other code, parameters and number of threads.
    clone.set_params(peak_lr=0.5)
    (clone.path / "src/reprogpt/training/loop.py").write_text("broken", "utf-8")
    clone.commit("later")
    clone.env["OMP_NUM_THREADS"] = "3"
    before = clone.files(), clone.succeed("git", "status", "--porcelain")
    done = clone.run("python", "-m", "reprogpt", "verify", digits)
    assert done.returncode == 1, done.stderr
    assert (clone.files(), clone.succeed("git", "status", "--porcelain")) == before
    assert len(clone.runs()) == 1
    assert re.search(
        rf"row {digits} \(peak_lr=0.002, seed 3\) of commit \w+\nwhen it was recorded, it took \d+ seconds on: ",
        done.stderr,
    )
    assert re.findall(r"(?m)^  DIFFERS +(\w+)", done.stdout) == ["val_accuracy"]
    assert done.stdout.endswith(f"\nNOT the same: 1 of 13 values of row {digits}\n")
