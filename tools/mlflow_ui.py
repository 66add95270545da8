"""`mlflow ui` on 127.0.0.1, and a headless Chromium to look at it with."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")  # Debian's first
NO_BROWSER = f"no Chromium on PATH ({', '.join(NAMES)}); on Debian: apt-get install chromium"
SECONDS = 120.0  # for the server to answer, and for anything on a page to appear: the machine may be busy


def browser_program() -> str | None:
    """The installed Chromium, or Chrome; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def serving(folder: Path, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """The address of `mlflow ui` run in that folder, on a free port, with the store that it finds there.

    Raises RuntimeError with the server's words where it ends or does not answer in SECONDS.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        # One page needs one process, and none that wait for jobs: they would take most of the start.
        command = ["mlflow", "ui", "--port", str(port), "--workers", "1"]
        settings = {**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(command, cwd=folder, env=settings, stdout=log, stderr=log, start_new_session=True)
        try:
            if not _answers(address, process):
                log.seek(0)
                raise RuntimeError(f"{' '.join(command)}: no answer\n{log.read().decode()}")
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # with its workers, which outlive it otherwise
            process.wait()


def _answers(address: str, process: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return True
        except OSError:
            time.sleep(0.2)
    return False


@contextmanager
def browsing(program: str, size: ViewportSize, scale: float = 1) -> Iterator[Page]:
    """An empty page of a new browser without a past; scale: pixels of a screenshot a CSS pixel."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--disable-gpu"])
        page = browser.new_page(viewport=size, device_scale_factor=scale, reduced_motion="reduce")
        page.set_default_timeout(SECONDS * 1000)
        yield page
        browser.close()
