"""A PostgreSQL cluster of a test's own: on 127.0.0.1, in a temporary folder, ended by its process id."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.mlflow_server import free_port

USER, DATABASE = "mlflow", "postgres"


def programs() -> Path | None:
    """The folder with initdb and postgres of the newest version that Debian has installed; None if there is none."""
    folders = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in folders), key=lambda path: int(path.parent.name), default=None)


def why_not() -> str | None:
    """Why no cluster can be started here; None where one can."""
    if programs() is None:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and _other_user() is None:
        return "PostgreSQL refuses root, and there is no user postgres to run it as"
    return None


class Postgres:
    """A cluster with one superuser and a password."""

    def __init__(self) -> None:
        self.password = secrets.token_hex(12)
        self._port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="reprogpt-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """For SQLAlchemy, whose own choice for `postgresql:` is another driver from one version to the next."""
        return f"postgresql+psycopg2://{USER}:{self.password}@127.0.0.1:{self._port}/{DATABASE}"

    def start(self) -> None:
        """Make the cluster, start it, and wait until it takes connections."""
        if user := _other_user():
            shutil.chown(self._folder, user)
        secret, data = self._folder / "password", self._folder / "data"
        secret.write_text(self.password)
        made = ["--pgdata", str(data), "--username", USER, "--auth", "scram-sha-256", "--pwfile", str(secret)]
        subprocess.run([self._program("initdb"), *made, "--no-sync"], check=True, capture_output=True, **self._as())
        where = ["-D", str(data), "-h", "127.0.0.1", "-p", str(self._port), "-k", str(self._folder)]
        with (self._folder / "log").open("wb") as log:
            command = [self._program("postgres"), *where, "-F"]  # it need not survive a power cut
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._as())
        ready = [self._program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready, check=False).returncode:
            assert time.monotonic() < deadline and self._process.poll() is None, (self._folder / "log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """End it at once, and remove its folder."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)
        shutil.rmtree(self._folder)

    def dump(self) -> bytes:
        """All that it holds, as SQL."""
        command = [self._program("pg_dump"), "-h", "127.0.0.1", "-p", str(self._port), "-U", USER, DATABASE]
        environment = {**os.environ, "PGPASSWORD": self.password}
        return subprocess.run(command, env=environment, check=True, capture_output=True).stdout

    def _program(self, name: str) -> str:
        folder = programs()
        assert folder is not None
        return str(folder / name)

    def _as(self) -> dict[str, Any]:
        """Arguments that run a program as somebody whom PostgreSQL takes, in a folder that this one may enter."""
        user = _other_user()
        identity = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
        return {"cwd": self._folder, **identity}


def _other_user() -> str | None:
    """postgres, where this is root and there is that user; None otherwise."""
    if os.geteuid() != 0:
        return None
    return "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else None
