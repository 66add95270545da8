"""Graceful shutdown: when a stage is asked to stop, and with which exception."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from reprogpt.dvc import rwlock
from reprogpt.errors import OrphanedError, Terminated
from reprogpt.process.stop import StopRequest, graceful_shutdown


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
from reprogpt.process.stop import graceful_shutdown
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
from reprogpt.process.stop import StopRequest
request = StopRequest()
print("ready", request.reason(), flush=True)
deadline = time.monotonic() + 20
while request.reason() is None and time.monotonic() < deadline:
    time.sleep(0.01)
print(type(request.reason()).__name__, flush=True)
"""
# Stands in for DVC: notes its process id as DVC does, starts the child in a shell, and waits for it if told to.
PARENT = """
import json, os, pathlib, subprocess, sys
rwlock = pathlib.Path(".dvc/tmp/rwlock")
rwlock.parent.mkdir(parents=True)
writer = {"pid": os.getpid(), "cmd": "dvc repro"}
rwlock.write_text(json.dumps({"read": {}, "write": {"data/model": writer}}))
shell = subprocess.Popen(["/bin/sh", "-c", f'"{sys.executable}" -c "$CHILD"' + sys.argv[1]])
if sys.argv[2] == "wait":
    shell.wait()
"""
# "; true" keeps the shell alive after DVC, as some shells do anyway; without it, others become the child themselves.
SHELLS = ("; true", "")


def _start_parent(folder: Path, child: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "DVC_STAGE": "train", "CHILD": child}
    command = [sys.executable, "-c", PARENT, *arguments]
    return subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("more", SHELLS)
def test_a_killed_dvc_is_detected(tmp_path: Path, more: str) -> None:
    parent = _start_parent(tmp_path, CHILD, more, "wait")
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


@pytest.mark.parametrize("more", SHELLS)
def test_a_dvc_killed_during_the_stages_imports_is_detected(tmp_path: Path, more: str) -> None:
    """The child sleeps first, as a stage that imports torch for seconds; the process that adopts it is in its session,
    as process 1 of a container may be."""
    with _start_parent(tmp_path, f"import time; time.sleep(0.5){CHILD}", more, "leave") as parent:
        output, _ = parent.communicate(timeout=60)
    assert output.startswith("ready the dvc process that started this stage has ended")


def test_a_stage_of_a_dvc_that_another_one_has_found_dead_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next DVC removes the entries of a killed one before it runs a stage of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "train")
    Path(".dvc/tmp").mkdir(parents=True)
    Path(".dvc/tmp/rwlock").write_text('{"read": {}}')
    assert isinstance(StopRequest().reason(), OrphanedError)


@pytest.mark.parametrize("content", ["", "[]", None])
def test_without_dvcs_own_record_a_stage_is_not_stopped(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.setattr(rwlock, "_WAIT", 0.001)
    if content is not None:
        Path(".dvc/tmp").mkdir(parents=True)
        Path(".dvc/tmp/rwlock").write_text(content)
    assert StopRequest().reason() is None


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
