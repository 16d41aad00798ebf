"""The order of the files: those of long tests first, so that no worker is left with one of them at the end."""

from __future__ import annotations

import pytest

LONG = ("workflow", "pipelines", "faults", "scoring")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(room in item.path.parts for room in LONG))
