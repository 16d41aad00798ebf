"""Small shards by hand: what an extractor would append to its journal, without an extractor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.journal import INDEX, Journal
from features.manifest import Manifest
from features.outcome import Outcome
from features.recipe import digest
from features.store import partial_path, publish

RECIPE = {"kind": "made", "n": 1}
Videos = Sequence[npt.NDArray[Any]]


def videos(lengths: Sequence[int], dtype: str = "float16", row_shape: tuple[int, ...] = (4,), seed: int = 0) -> Videos:
    """Random rows (L, *D) for each length."""
    chance = np.random.default_rng(seed)
    return [chance.integers(0, 255, (n, *row_shape)).astype(dtype) for n in lengths]


def outcomes(rows: Videos) -> list[Outcome]:
    return [Outcome(outcome="ok", rows=len(r)) if len(r) else Outcome(outcome="too_short") for r in rows]


def manifest(rows: Videos, ends: Sequence[Outcome] | None = None, shard: int = 0, **fields: Any) -> Manifest:
    """What stands for `rows`, before it is written."""
    values = {
        "extractor": "made",
        "digest": digest(RECIPE),
        "recipe": RECIPE,
        "facts": {"feature_dim": 4},
        "shard": shard,
        "list_digest": "list",
        "ids": tuple(f"class/video{v}" for v in range(len(rows))),
        "outcomes": tuple(outcomes(rows) if ends is None else ends),
        "row_shape": rows[0].shape[1:],
        "dtype": rows[0].dtype.name,
    }
    return Manifest(**{**values, **fields})


def times(rows: Videos) -> list[npt.NDArray[np.int64]]:
    """40 ms a row, so that every row of a shard has another time than its neighbour."""
    return [np.arange(len(r), dtype=np.int64) * 40_000 + v for v, r in enumerate(rows)]


def open_journal(folder: Path, of: Manifest) -> Journal:
    head = {"digest": of.digest, "row_shape": list(of.row_shape), "dtype": of.dtype, "ids": list(of.ids)}
    return Journal(partial_path(folder, of.shard), head)


def fill(journal: Journal, rows: Videos, ends: Sequence[Outcome] | None = None) -> None:
    """Append what the journal lacks, a block and an outcome a video, as a resumed extractor does."""
    for video, (row, time, end) in enumerate(zip(rows, times(rows), ends or outcomes(rows), strict=True)):
        if video in journal.outcomes:
            continue
        have = journal.rows_of(video)
        index = np.zeros(len(row) - have, INDEX)
        index["video"], index["time_us"] = video, time[have:]
        if len(index):
            journal.append_rows(row[have:], index)
        journal.append_outcome(video, end)


def make(folder: Path, rows: Videos, ends: Sequence[Outcome] | None = None, shard: int = 0, **fields: Any) -> Manifest:
    """A published shard of `rows`."""
    wanted = manifest(rows, ends, shard, **fields)
    journal = open_journal(folder, wanted)
    fill(journal, rows, ends)
    return publish(journal, folder, wanted)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
