"""A real MLflow server on 127.0.0.1, for benchmarks and tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from reprogpt.tracking.store.uri import sqlite_uri

START_SECONDS = 120.0


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TrackingServer:
    """A server that can be killed and started again with what it had stored, in `folder` unless told otherwise.

    options: of `mlflow server`, besides. environment: its variables MLFLOW_*, and more for it.
    """

    def __init__(self, folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self._folder, self._options = folder, options
        self._environment = {"MLFLOW_BACKEND_STORE_URI": sqlite_uri(folder / "server.db"), **(environment or {})}
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def artifacts(self) -> Path:
        """Where it keeps artifacts."""
        return self._folder / "artifacts"

    @property
    def log(self) -> Path:
        """What it has printed."""
        return self._folder / "log"

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises RuntimeError, with what it printed, where it ends instead or takes longer than START_SECONDS.
        """
        others = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--artifacts-destination", str(self.artifacts), *self._options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=others | self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self._folder,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the MLflow server does not answer:\n{self.log.read_text()}")
            time.sleep(0.2)

    def kill(self) -> None:
        """End it and its workers without warning."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start it; it is gone when the block ends."""
        try:
            self.start()
            yield
        finally:
            self.kill()

    def _answers(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()
