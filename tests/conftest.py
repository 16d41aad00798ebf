"""The order of the files, those of long tests first, so that no worker is left with one of them at the end; no test
fails for the time that it takes; and a folder of converted networks for all workers, made and removed with the run."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

NETWORKS = "FRAMEPOOL_TESTS_NETWORKS"  # see `tests.media.share_networks`
LONG = ("workflow", "pipelines", "faults", "scoring")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # workers inherit it
        os.environ[NETWORKS] = tempfile.mkdtemp(prefix="framepool-networks-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(NETWORKS), ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(room in item.path.parts for room in LONG))
