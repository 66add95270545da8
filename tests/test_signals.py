"""Graceful shutdown: when a stage is asked to stop, and with which exception."""

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


@pytest.mark.parametrize(("number", "exception"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_the_first_signal_only_sets_the_reason(
    number: int, exception: type, capsys: pytest.CaptureFixture[str]
) -> None:
    with graceful_shutdown() as request:
        assert request.reason() is None
        os.kill(os.getpid(), number)
        assert isinstance(request.reason(), exception)
    assert "stopping after this step; repeat to stop at once" in capsys.readouterr().err


TWICE = """
import os, signal, time
from reprogpt.signals import graceful_shutdown
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with graceful_shutdown() as request:
        os.kill(os.getpid(), signal.SIGINT)
        while request.signal is None:  # of two that arrive together, Python sees one
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)  # ended by the signal
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_second_ctrl_c_has_its_usual_effect() -> None:
    """In a process of its own: a Ctrl-C that goes astray would end this one and all of its tests."""
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n")


def test_in_a_worker_a_second_signal_is_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    with graceful_shutdown(psutil.Process().parent(), quiet=True) as request:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert isinstance(request.reason(), Terminated)
    assert capsys.readouterr().err == ""


def test_afterwards_the_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with graceful_shutdown():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_dvc_there_is_no_reason_to_stop() -> None:
    assert StopRequest().reason() is None


CHILD = """
import sys, time
from reprogpt.signals import StopRequest
request = StopRequest()
print("ready", request.reason(), flush=True)
deadline = time.monotonic() + 20
while request.reason() is None and time.monotonic() < deadline:
    time.sleep(0.01)
print(type(request.reason()).__name__, flush=True)
"""
# Stands in for DVC: starts the child, through a shell or not, and waits.
PARENT = """
import subprocess, sys
subprocess.run(["/bin/sh", "-c", f'"{sys.executable}" -c "$CHILD"' + sys.argv[1]])
"""


# "; true" keeps the shell alive after DVC; without it, the shell becomes the child itself.
@pytest.mark.parametrize("more", ["; true", ""])
def test_a_killed_dvc_is_detected(tmp_path: Path, more: str) -> None:
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


def test_a_dvc_killed_during_the_stages_imports_is_detected(tmp_path: Path) -> None:
    """The child sleeps first, as a stage that imports torch for seconds."""
    child = f"import time; time.sleep(0.5){CHILD}"
    program = tmp_path / "dvc"
    program.write_text('import os, subprocess, sys; subprocess.Popen([sys.executable, "-c", os.environ["CHILD"]])')
    environment = {**os.environ, "DVC_STAGE": "train", "CHILD": child}
    # In a session of its own, as a terminal or scheduler starts it: process 1 may share the session of these tests.
    parent = subprocess.run(
        [sys.executable, program],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert parent.stdout.startswith("ready the dvc process that started this stage has ended")


def test_a_lost_terminal_stops_as_sigterm_does_and_repeats_are_ignored() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        with graceful_shutdown(quiet=True) as request:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            assert isinstance(request.reason(), Terminated)
        os.kill(os.getpid(), signal.SIGHUP)  # while the rest is uploaded
    finally:
        signal.signal(signal.SIGHUP, before)


def test_under_nohup_a_lost_terminal_is_no_reason_to_stop() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful_shutdown(quiet=True) as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.reason() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
