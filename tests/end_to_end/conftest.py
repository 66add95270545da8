"""Clones that the tests of a file share."""

import pytest

from tests.end_to_end.workspace import Workspace, make_workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A fresh clone in which nothing has run, shared by a file's tests in their order."""
    return make_workspace(tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def finished(workspace: Workspace) -> Workspace:
    """The clone after one `dvc repro`."""
    workspace.succeed("dvc", "repro")
    return workspace
