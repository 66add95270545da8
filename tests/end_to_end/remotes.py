"""Places to `dvc push` to: a folder, or an S3 server that really speaks S3, on loopback."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

from moto.server import ThreadedMotoServer

from tests.end_to_end.workspace import Workspace

BUCKET = "models"
LOCAL = ".dvc/config.local"
KEY_ID, SECRET = secrets.token_hex(10), secrets.token_hex(20)  # drawn, so that they are in no file of ours


@contextmanager
def remote(kind: str, folder: Path, workspace: Workspace) -> Iterator[None]:
    """Make a remote and add it to the workspace's .dvc/config, as docs/storage-and-remotes.md says.

    kind: "local" or "s3".

    An S3 remote's key is in .dvc/config.local while the block works.
    """
    if kind == "local":
        workspace.succeed("dvc", "remote", "add", "--force", "--default", "storage", str(folder / "storage"))
        yield
        return
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        urlopen(Request(f"{endpoint}/{BUCKET}", method="PUT"), timeout=30).close()
        workspace.succeed("dvc", "remote", "add", "--force", "--default", "storage", f"s3://{BUCKET}/reprogpt")
        workspace.succeed("dvc", "remote", "modify", "storage", "endpointurl", endpoint)
        for name in [name for name in workspace.env if name.startswith("AWS_")]:
            del workspace.env[name]  # the developer's own
        for option, value in (("access_key_id", KEY_ID), ("secret_access_key", SECRET)):
            workspace.succeed("dvc", "remote", "modify", "--local", "storage", option, value)
        yield
    finally:
        (workspace.path / LOCAL).unlink(missing_ok=True)
        server.stop()


def clone_of(workspace: Workspace, folder: Path) -> Workspace:
    """A git clone with the remote's key if it needs one, and with a download cache of its own, which is empty."""
    workspace.succeed("git", "clone", "-q", workspace.path.as_uri(), str(folder))
    if (workspace.path / LOCAL).exists():
        shutil.copy(workspace.path / LOCAL, folder / LOCAL)
    made = Workspace(folder, folder.parent / "no-downloads")
    made.env = workspace.env | {"REPROGPT_CACHE": made.env["REPROGPT_CACHE"]}
    return made
