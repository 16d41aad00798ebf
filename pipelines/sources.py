"""Where trainings get their rows: in memory where they fit there, else from disk, block by block; those of a store that
keeps none are computed as they are asked for.

What fits in memory a child process reads while this one imports torch, which takes as long as a few gigabytes:

    with reading_ahead(stores) as ahead:
        import torch
        features = opened(stores, threads=2) if ahead is None else ahead.features()
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from features.errors import FramepoolError
from features.rows import TooLarge, readings
from heads.malloc import keep_freed_memory
from pipelines.commands.stage_one import task_of
from pipelines.forked import Forked
from pipelines.plan import Store

if TYPE_CHECKING:
    from features.batches import Features
    from features.stream import Stream
    from pipelines.virtual import Virtual


class Ahead:
    """The rows of `ids`, read by a child into memory that it shares with its parent."""

    def __init__(self, folders: Mapping[str, Path], ids: Sequence[str]) -> None:
        self._ids, self._found = ids, readings(folders, ids)
        self._arrays = {modality: reading.empty(_shared) for modality, reading in self._found.items()}
        self.child = Forked(self._read, "reading of features", "run it again, with --stream where memory is short")

    def features(self) -> Features:
        """What `Features.open` gives, once it is there. To be asked once."""
        from features.batches import Features

        if isinstance(error := self.child.answer(), FramepoolError):
            raise error
        found, self._found = self._found, {}  # manifests of a large archive are large
        return Features.having(self._ids, found, self._arrays)

    def _read(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)  # there is nothing to unwind
        keep_freed_memory()
        for modality, reading in self._found.items():
            reading.read(self._arrays[modality])


@contextmanager
def reading_ahead(stores: Mapping[str, Store], stream: bool = False) -> Iterator[Ahead | None]:
    """The rows, while a child reads them; None where torch is there already, under torchrun, and where the rows are not
    read as a whole or, as `opened` will say, cannot be."""
    ahead = None
    if sys.platform == "linux" and "torch" not in sys.modules and "WORLD_SIZE" not in os.environ and not stream:
        if (folders := _kept(stores)) and len(folders) == len(stores):
            with suppress(FramepoolError):
                ahead = Ahead(folders, _ids(stores))
    try:
        yield ahead
    finally:
        if ahead is not None:
            ahead.child.end()
            ahead.child.wait()


def opened(
    stores: Mapping[str, Store], *, threads: int, stream: bool = False, processes: int = 1
) -> Features | Stream | Virtual:
    """The rows of all videos of the stores' dataset, once for each of the machine's `processes`. Raises what
    `Features.open` and `Stream.open` raise."""
    folders, ids = _kept(stores), _ids(stores)
    if len(folders) == len(stores):
        return from_disk(folders, ids, stream, processes)

    from features.batches import Features
    from pipelines.computed import note
    from pipelines.virtual import Virtual

    plan = next(iter(stores.values())).plan
    live = {m: s for m, s in stores.items() if m not in folders}
    return Virtual.open(
        {m: task_of(s, 0) for m, s in live.items()},
        Features.open(folders, ids) if folders else None,
        ids,
        [plan.root / v.path if v.path else None for v in plan.videos.videos],
        stores={m: {"store": s.name, "digest": s.digest} for m, s in live.items()},
        workers=threads,
        max_bad_share=plan.config.max_bad_share,
        tell=lambda m, stage, outcomes: note(live[m], stage.lasting_facts, stage.row_shape, stage.dtype.name, outcomes),
    )


def from_disk(
    folders: Mapping[str, Path], ids: Sequence[str], stream: bool = False, processes: int = 1
) -> Features | Stream:
    """From disk; all processes decide alike."""
    from features.batches import Features
    from features.stream import Stream
    from heads.parallel import ranks

    own = ranks()
    try:
        if not stream and own.count > 1:
            readings(folders, ids, processes)
    except TooLarge:
        stream = True
    if own.least(not stream):
        try:
            return Features.open(folders, ids)
        except TooLarge as error:
            if own.count > 1:  # what the others have read by now
                raise
            print(f"  {error.what}: streaming them, block by block", flush=True)
    found = Stream.open(folders, ids)
    return replace(found, block_bytes=own.least(found.block_bytes // processes))


def _kept(stores: Mapping[str, Store]) -> dict[str, Path]:
    return {modality: store.folder for modality, store in stores.items() if store.config.store}


def _ids(stores: Mapping[str, Store]) -> list[str]:
    return [video.id for video in next(iter(stores.values())).plan.videos.videos]


def _shared(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Memory that a child can write and its parent read."""
    return np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
