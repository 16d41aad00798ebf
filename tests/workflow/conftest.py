from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.workflow import world


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset, run once from nothing to its results. Not to be changed: take a `copy`."""
    folder = world.build(tmp_path_factory.mktemp("workflow") / "made")
    world.snakemake(folder)
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The finished dataset, to be changed."""
    return shutil.copytree(made, tmp_path / "copy", symlinks=True)
