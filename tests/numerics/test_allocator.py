"""Freed memory stays in the process: a new tensor of the same size touches no new page."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from reprogpt.numerics.allocator import retain_freed_memory
if sys.argv[1] == "keep":
    retain_freed_memory()
for _ in range(12):  # alignment: it takes some rounds until every offset has been used
    torch.zeros(10_000_000)  # 40 MB, more than glibc ever keeps by itself
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.zeros(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is configured")
def test_after_some_tensors_of_a_size_the_next_take_no_new_page() -> None:
    faults = {}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    for setting in ("keep", "leave"):
        command = [sys.executable, "-c", PROGRAM, setting]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=plain, timeout=120)
        faults[setting] = int(done.stdout)
    assert faults["keep"] < 100 < 50_000 < faults["leave"]
