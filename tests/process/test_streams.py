"""A stage whose reader goes away works to its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
# Long enough to fill the pipe of a reader that is gone, and with a child process at the end.
PROGRAM = f"""
import os, subprocess, sys, threading
sys.path.insert(0, {str(SRC)!r})
from tqdm import tqdm
from reprogpt.process.streams import outlive_readers
outlive_readers()
print("first", flush=True)
stream = getattr(sys, sys.argv[1])
for number in range(20000):
    print("line", number, file=stream)
tqdm.write("by tqdm", file=stream)
stream.flush()
thread = threading.Thread(target=print, args=("from a thread",), kwargs={{"file": stream}})
thread.start()
thread.join()
subprocess.run(["echo", "from a child"], check=True, stdout=stream)
open(sys.argv[2], "w").write("ended")
"""


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_program_whose_reader_closed_the_pipe_ends_well(name: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-c", PROGRAM, name, str(tmp_path / "end")]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, name: writer}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        os.close(writer)
        os.read(reader, 5)
        os.close(reader)
        assert process.wait(60) == 0
    assert (tmp_path / "end").read_text() == "ended"


def test_what_is_read_arrives_whole_and_in_order(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "stdout", str(tmp_path / "end")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = ["first", *(f"line {number}" for number in range(20000)), "by tqdm", "from a thread", "from a child"]
    assert done.stdout.splitlines() == lines and done.stderr == ""


def test_a_stream_that_is_closed_or_fails_otherwise_stays_as_it_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "stdout", str(tmp_path / "end")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "No space left on device" in done.stderr
