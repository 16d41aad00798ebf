"""Rows that a child reads while its parent imports torch: the same, the same errors, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from features.batches import Features
from features.errors import DamagedStore, FramepoolError
from features.rows import Reading
from pipelines import plan as plans
from pipelines.sources import Ahead, opened, reading_ahead
from tests.features import made
from tests.workflow import world

IDS = [f"class/video{k}" for k in (3, 0, 5, 1)]


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, Path]:
    shapes = {"rgb": ("float16", (4,)), "maps": ("uint8", (2, 3))}
    for modality, (dtype, shape) in shapes.items():
        made.make(tmp_path / modality, made.videos([5, 3, 0, 4, 2, 7], dtype, shape, seed=len(modality)))
    return {modality: tmp_path / modality for modality in shapes}


def test_a_child_reads_what_its_parent_would(stores: dict[str, Path]) -> None:
    there, ahead = Features.open(stores, IDS), Ahead(stores, IDS).features()
    assert ahead.ids == there.ids and ahead.stores == there.stores
    for modality, rows in there.rows.items():
        for ours, theirs in zip(ahead.rows[modality], rows, strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), modality
        assert not ahead.rows[modality].data[-1].any(), "padding"


def test_its_errors_are_those_of_reading(stores: dict[str, Path]) -> None:
    with pytest.raises(FramepoolError, match=r"store lacks videos: .*got x is not among them"):
        Ahead(stores, ["x"])
    chunk = next(p for p in (stores["maps"] / "00000.zarr" / "frames" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    ahead = Ahead(stores, IDS)
    with pytest.raises(DamagedStore, match=r"bytes do not match their manifest: .*maps"):
        ahead.features()


def test_a_child_that_is_killed_is_an_error(stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reading, "read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    ahead = Ahead(stores, IDS)
    with pytest.raises(FramepoolError, match="reading of features ended without a word: got exit code -9; run it"):
        ahead.features()


SCRIPT = """
import sys
from pipelines import plan
from pipelines.sources import opened, reading_ahead
stores = plan.of("tiny").run("average", "1").stores
with reading_ahead(stores) as ahead:
    print(ahead is not None, "torch" in sys.modules)
    print(opened(stores, threads=1, ahead=ahead).nbytes)
with reading_ahead(stores, stream=True) as streamed:
    print(streamed)
"""


def test_it_is_done_where_torch_is_still_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = world.build(tmp_path / "made")
    program = [sys.executable, "-m", "pipelines"]
    env = {**os.environ, "PYTHONPATH": str(world.REPO)}
    for line in ("index tiny", "extract tiny --extractor rgb --threads 1"):
        subprocess.run([*program, *line.split()], cwd=folder, env=env, check=True, capture_output=True)
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env=env, check=True, capture_output=True, text=True
    )
    first, size, streamed = said.stdout.splitlines()
    assert first == "True False" and streamed == "None"
    monkeypatch.chdir(folder)
    plans.of.cache_clear()
    stores = plans.of("tiny").run("average", "1").stores
    with reading_ahead(stores) as ahead:
        assert ahead is None, "torch is there"
        here = opened(stores, threads=1, ahead=ahead)
    plans.of.cache_clear()
    assert isinstance(here, Features) and here.nbytes == int(size) > 0
