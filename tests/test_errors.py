"""How a program ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reprogpt.errors import RESTORE_ADVICE

SRC = Path(__file__).parents[1] / "src"


def ends(body: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose main function has this body."""
    program = (
        f"import os, signal, sys, time; sys.path.insert(0, {str(SRC)!r})\n"
        f"from reprogpt.errors import ParamsError, run_program\n"
        f"def main():\n    {body}\nrun_program(main)\n"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("result", "code"), [("None", 0), ("'done'", 0), ("0", 0), ("3", 3)])
def test_a_program_ends_with_0_or_the_whole_number_it_returns(result: str, code: int) -> None:
    done = ends(f"return {result}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_a_persons_mistake_ends_in_one_message_and_2() -> None:
    done = ends("raise ParamsError('seed: -1 is not allowed')")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "\nerror: seed: -1 is not allowed\n")


def test_ctrl_c_ends_in_130_without_traceback() -> None:
    done = ends(
        "signal.signal(signal.SIGINT, signal.default_int_handler); os.kill(os.getpid(), signal.SIGINT); time.sleep(30)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted\n")


def test_sigterm_ends_in_143_without_traceback() -> None:
    done = ends("os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)")
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "\nterminated\n")


def test_sigterm_passes_ordinary_handlers_and_runs_cleanup() -> None:
    done = ends(
        "\n    try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)"
        "\n    except Exception: print('swallowed')"
        "\n    finally: print('cleaned up')"
    )
    assert (done.returncode, done.stdout) == (143, "cleaned up\n")


@pytest.mark.parametrize(("stage", "said"), [("train", True), (None, False)])
def test_under_dvc_the_way_back_is_said_since_outs_are_removed(
    monkeypatch: pytest.MonkeyPatch, stage: str | None, said: bool
) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    if stage:
        monkeypatch.setenv("DVC_STAGE", stage)
    assert (RESTORE_ADVICE in ends("raise ParamsError('seed: -1 is not allowed')").stderr) is said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_stage_is_loading_leaves_no_traceback(number: int, code: int) -> None:
    """Before run_program: in the imports, which take seconds."""
    program = (
        "import os, signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import stages; os.kill(os.getpid(), {int(number)}); time.sleep(30)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, "")


def test_a_bug_keeps_its_traceback() -> None:
    done = ends("return {}['absent']")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "KeyError: 'absent'" in done.stderr
