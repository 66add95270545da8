"""Keeps the machine's downloads, vocabulary and DVC variables out of the tests."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reprogpt.paths import cache_folder

REAL_DOWNLOAD_CACHE = cache_folder()  # read before any fixture moves it
REMOVED = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", "MLFLOW_TRACKING_URI")


@pytest.fixture(scope="session")
def real_download_cache() -> Path:
    """The user's own download cache, which may hold a text fetched earlier. For reading only."""
    return REAL_DOWNLOAD_CACHE


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A download cache for this session and no settings of other tools, also for module fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPROGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in [name for name in os.environ if name in REMOVED or name.startswith("DVC_")]:
            patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def tiktoken_variable_restored(own_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """load_encoding sets TIKTOKEN_CACHE_DIR for its process: the next test must not see it."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # so that monkeypatch knows to remove it afterwards
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")


@pytest.fixture(autouse=True)
def signal_handlers_of_a_terminal() -> Iterator[None]:
    """Those of a program on a terminal, also where a shell runs the tests in the background or under nohup.

    They are restored: a stage that is imported here sets its own, and the next test's Ctrl-C would end this process.
    """
    defaults: dict[int, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module", autouse=True)
def torchs_product_library_restored() -> Iterator[None]:
    """A training in this process selects a library for products: the next file's tests must not find it selected."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].backends.mkldnn.matmul.fp32_precision = "none"


@pytest.fixture(scope="module")
def fresh_store(tmp_path_factory: pytest.TempPathFactory, own_environment: None) -> Path:
    """A store with our experiment and nothing in it: making one takes seconds."""
    from reprogpt.tracking.store.client import open_store  # imported here: MLflow takes seconds, and few tests need it

    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        open_store()
    return folder / "mlflow.db"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first, so that two workers end at about the same time; the order within a file stays."""
    slowest = [
        "test_golden",
        "test_experiments",
        "test_repro",
        "test_exit",
        "test_tracker",
        "test_starting_from",
        "test_resume",
        "test_portable",
    ]
    ranks = {name: rank for rank, name in enumerate(slowest)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(slowest)))
