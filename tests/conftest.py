"""The order of the files, those of long tests first, so that no worker is left with one of them at the end; and no
test fails for the time that it takes."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

LONG = ("workflow", "pipelines", "faults", "scoring")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(room in item.path.parts for room in LONG))
