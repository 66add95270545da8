"""What verify reads before a rerun: stages, pinned versions, and the disk space that it needs."""

from pathlib import Path

import pytest

from reprogpt.cli import verify
from reprogpt.dvc.revisions import Workspace
from reprogpt.runs.compare import Change


def test_installed_versions_are_compared_with_the_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "PINS", tmp_path / "requirements.lock")
    monkeypatch.setattr(verify, "version", {"torch": "2.13.0+cpu", "numpy": "2.4.6"}.__getitem__)
    monkeypatch.setattr(verify, "PackageNotFoundError", KeyError)
    verify.PINS.write_text("# pins\ntorch==2.13.0\nnumpy==2.4.7\nnvidia-cublas==13.0 ; platform_system\n", "utf-8")
    assert verify._unpinned_versions() == [Change("numpy", "2.4.7", "2.4.6")]


def workspace(init_from: str = "") -> Workspace:
    """A workspace with sizes in dvc.lock and nothing else."""
    made = Workspace()
    made.lock = {
        "tokenize": {"deps": [{"path": "raw.txt"}], "outs": [{"path": "ids.npy", "size": 10}]},
        "train": {
            "deps": [{"path": "ids.npy", "size": 10}, {"path": "code.py", "size": 7}],
            "outs": [{"path": "model", "size": 100}],
        },
    }
    made.params = {"init_from": init_from}
    return made


def test_disk_space_is_needed_for_the_copies_of_outs_and_for_what_other_stages_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verify._needed_bytes(workspace(), ["tokenize", "train"]) == 3 * 110 + 7
    assert verify._needed_bytes(workspace(), ["train"]) == 3 * 100 + 10 + 7
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start").mkdir()
    (tmp_path / "start/model.safetensors").write_bytes(bytes(1000))
    assert verify._needed_bytes(workspace("start"), ["tokenize", "train"]) == 3 * 110 + 7 + 1000
