"""When a stage is to stop, and by which exception."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from reprogpt.errors import OrphanedError, Terminated
from reprogpt.signals import StopRequest, graceful_shutdown


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_the_first_signal_waits_for_a_safe_moment(number: int, kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    with graceful_shutdown() as stopping:
        assert stopping.reason() is None
        os.kill(os.getpid(), number)
        assert isinstance(stopping.reason(), kind)
    assert "stopping after this step; once more to stop at once" in capsys.readouterr().err


def test_the_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), graceful_shutdown():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_signal_by_way_of_the_launcher_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with graceful_shutdown(psutil.Process().parent(), quiet=True) as stopping:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert isinstance(stopping.reason(), Terminated)
    assert capsys.readouterr().err == ""


def test_afterwards_signals_do_what_they_did() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with graceful_shutdown():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_dvc_nobody_is_missed() -> None:
    assert StopRequest().reason() is None


CHILD = """
import sys, time
from reprogpt.signals import StopRequest
stopping = StopRequest()
print("ready", stopping.reason(), flush=True)
deadline = time.monotonic() + 20
while stopping.reason() is None and time.monotonic() < deadline:
    time.sleep(0.01)
print(type(stopping.reason()).__name__, flush=True)
"""
# Stands for DVC: starts the child, through a shell or not, and waits.
PARENT = """
import subprocess, sys
subprocess.run(["/bin/sh", "-c", f'"{sys.executable}" -c "$CHILD"' + sys.argv[1]])
"""


# "; true" keeps the shell alive after DVC; without it, the shell becomes the child itself.
@pytest.mark.parametrize("more", ["; true", ""])
def test_a_killed_dvc_is_missed(tmp_path: Path, more: str) -> None:
    program = tmp_path / "dvc"
    program.write_text(PARENT)
    environment = {**os.environ, "DVC_STAGE": "train", "CHILD": CHILD}
    parent = subprocess.Popen([sys.executable, program, more], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == "ready None\n"
        time.sleep(0.1)
        parent.kill()
        assert parent.stdout.readline() == f"{OrphanedError.__name__}\n"
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


def test_a_dvc_that_was_killed_before_the_stage_looked_is_missed_too(tmp_path: Path) -> None:
    """The child sleeps while it is loading, as it does for seconds when it imports torch."""
    child = f"import time; time.sleep(0.5){CHILD}"
    program = tmp_path / "dvc"
    program.write_text('import os, subprocess, sys; subprocess.Popen([sys.executable, "-c", os.environ["CHILD"]])')
    environment = {**os.environ, "DVC_STAGE": "train", "CHILD": child}
    # A session of its own, as a terminal or a scheduler gives: process 1 may be of the session of these tests.
    parent = subprocess.run(
        [sys.executable, program],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert parent.stdout.startswith("ready the dvc that started this stage is gone")
