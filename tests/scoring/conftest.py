"""The tiny dataset, trained once, and a way to call commands in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import __main__ as program
from pipelines import plan as plans
from tests.scoring import world


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("scoring") / "made"
    with pytest.MonkeyPatch.context() as patch:
        folder.mkdir()
        patch.chdir(folder)
        patch.setattr(program.signal, "signal", lambda *_: None)
        return world.build(folder)


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, and the folder that commands run in."""
    folder = shutil.copytree(trained, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(folder)
    plans.of.cache_clear()
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str]]:
    """Run a command as the program does: its exit code, and what it printed."""
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)

    def run(line: str) -> tuple[int, str]:
        capsys.readouterr()
        code = program.main(line.split())
        said = capsys.readouterr()
        return code, said.out + said.err

    return run
