"""Rows that a child reads while its parent imports torch: the same, the same errors, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from features.batches import Features
from features.errors import DamagedStore, FramepoolError
from features.rows import Reading
from pipelines import plan as plans
from pipelines.__main__ import _leave
from pipelines.sources import Ahead, opened
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
    with pytest.raises(
        FramepoolError, match="reading of features ended without a word: got exit code -9; run it again, with --stream"
    ):
        ahead.features()


def test_a_signal_is_not_kept_waiting(stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a scheduler stops ends at once, reading or not, and its child with it."""
    monkeypatch.setattr(Reading, "read", lambda *_: time.sleep(600))
    before = signal.signal(signal.SIGALRM, _leave)
    started = time.monotonic()
    try:
        ahead = Ahead(stores, IDS)
        signal.setitimer(signal.ITIMER_REAL, 1)
        with pytest.raises(SystemExit):
            ahead.features()
        ahead.child.end()
        ahead.child.wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # what comes without its handler kills
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 60


SCRIPT = """
import multiprocessing, os, sys
import psutil
import pipelines.__main__, pipelines.commands.stage_two
from pipelines import plan
from pipelines.sources import opened, reading_ahead

def said(**options):
    with reading_ahead(stores, **options) as ahead:
        return ahead is not None

stores = plan.of("tiny").run("average", "1").stores
found = [said(), said(stream=True)]
os.environ["WORLD_SIZE"] = "2"
found.append(said())
del os.environ["WORLD_SIZE"]
memory, psutil.virtual_memory = psutil.virtual_memory, type("M", (), {"available": 1000})
found.append(said())
psutil.virtual_memory = memory
print(*found, multiprocessing.active_children(), "torch" in sys.modules, "zarr" in sys.modules)
with reading_ahead(stores) as ahead:
    print(ahead.features().nbytes)
print(said())
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
    first, size, again = said.stdout.splitlines()
    assert first == "True False False False [] False False", "alone, streamed, of several, too large; nobody, nothing"
    assert again == "False", "torch is there"
    monkeypatch.chdir(folder)
    plans.of.cache_clear()
    here = opened(plans.of("tiny").run("average", "1").stores, threads=1)
    plans.of.cache_clear()
    assert isinstance(here, Features) and here.nbytes == int(size) > 0
