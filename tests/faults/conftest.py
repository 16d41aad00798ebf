from __future__ import annotations

from pathlib import Path

import pytest

from extract.shard import extract_shard
from tests.faults import world


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once; its `undisturbed` store is what every other must equal."""
    folder = world.build(tmp_path_factory.mktemp("world"))
    extract_shard(world.task(folder, store=folder / "undisturbed"), workers=2)
    return folder
