"""Places to `dvc push` to: a folder, or an S3 server that really speaks S3, on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

from moto.server import ThreadedMotoServer
from workspace import Workspace

BUCKET, KEY_ID, SECRET = "models", "an-id-for-tests-alone", "a-secret-for-tests-alone"


@contextmanager
def remote(kind: str, folder: Path, workspace: Workspace) -> Iterator[None]:
    """Make a place and name it in the workspace's .dvc/config, as the README says. kind: "local" or "s3"."""
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
        yield
    finally:
        server.stop()


def give_credentials(workspace: Workspace) -> None:
    """The key of an S3 remote, for this clone alone: in .dvc/config.local, which git ignores."""
    for name in [name for name in workspace.env if name.startswith("AWS_")]:
        del workspace.env[name]  # the developer's own
    for option, value in (("access_key_id", KEY_ID), ("secret_access_key", SECRET)):
        workspace.succeed("dvc", "remote", "modify", "--local", "storage", option, value)


def clone_of(workspace: Workspace, folder: Path) -> Workspace:
    """A git clone with nothing but what git carries, and with a download cache of its own, which is empty."""
    workspace.succeed("git", "clone", "-q", workspace.path.as_uri(), str(folder))
    return Workspace(folder, folder.parent / "no-downloads")
