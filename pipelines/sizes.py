"""What a store will take on disk, before anything is extracted.

size = store_size(plan.of("ucf6").store("rgb")); print(size.text, size.bytes)
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from extract.audio import duration_s
from extract.config import Frames, FromVideo, Imported, Logmel, Networked, Tvl1, snippet
from extract.media import MediaError, probe
from extract.runtime import Model, feature_shape
from extract.samples import PATCH, job_of
from extract.sampling import rows
from extract.samplings import Segments, Spread, Uniform
from features.errors import UserError
from features.foreign import Collection, Unreadable
from pipelines.config import config_path
from pipelines.datasets import flash
from pipelines.plan import Plan, Store

SAMPLE = 16  # videos whose headers are read where the rows depend on their length


@dataclass(frozen=True)
class Size:
    """Bytes before compression (None: not to be known), and one line that says how they come about."""

    bytes: float | None
    text: str


def store_size(store: Store) -> Size:
    """Rows a video, bytes a row, bytes in all; 0 for what is not stored."""
    shape, dtype = row_of(store)
    per_video = _rows_per_video(store)
    row = f"{'x'.join(map(str, shape))} {dtype} a row"
    if not store.config.store:
        return Size(0, f"not stored, computed as it is read ({row})")
    if per_video is None:
        return Size(None, f"{row}; rows not known, as no video is there that can be read")
    size = per_video * prod(shape) * dtype.itemsize * len(store.plan.videos.videos)
    kept = ", removed when it was read" if store.config.temporary else ""
    return Size(size, f"about {size / 1e6:,.1f} MB before compression ({per_video:.0f} rows a video, {row}){kept}")


def check_budget(plan: Plan, sizes: Mapping[str, Size] | None = None) -> None:
    """Raises `UserError` where all stores of `plan` together would take more than its `disk_gb`."""
    budget = plan.config.disk_gb
    if budget is None:
        return
    found = {store.name: store_size(store) for store in plan.all_stores()} if sizes is None else sizes
    total = total_bytes(found)
    if total > budget * 1e9:
        largest = max(found, key=lambda name: found[name].bytes or 0)
        where = f"{config_path(plan.dataset)}: $.disk_gb"
        fix = f"set store: false or temporary: true for an extractor that only feeds others ({largest} is the largest)"
        got = f"{total / 1e9:,.2f} GB"
        raise UserError("stores would not fit", where=where, expected=f"{budget:g} GB", got=got, fix=fix)


def total_bytes(sizes: Mapping[str, Size]) -> float:
    """Of all stores whose size is known."""
    return sum(size.bytes or 0 for size in sizes.values())


def row_of(store: Store) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and type of a row."""
    config = store.config
    if isinstance(config, Networked):
        source = row_of(store.source)[0] if store.source else None
        return feature_shape(Model(config, None, source)), np.dtype(np.float16)
    if isinstance(config, Frames):
        return flash.SHAPE, np.dtype(np.uint8)
    if isinstance(config, Imported) and (collection := store.collection) is not None:
        return collection.row_shape, np.dtype(config.dtype)
    if isinstance(config, FromVideo):
        shape = job_of(config, config.transform.recipe()).shape
        return ((*shape[-2:], 2 * config.pairs) if isinstance(config, Tvl1) else shape), np.dtype(np.uint8)
    return PATCH, np.dtype(np.float32)


def _rows_per_video(store: Store) -> float | None:
    if store.source is not None:
        return _rows_per_video(store.source)
    config, found = store.config, []
    if store.plan.generator is not None:
        return store.plan.generator.length
    if isinstance(config, FromVideo) and isinstance(config.sampling, Uniform | Segments | Spread):
        return config.sampling.n * len(config.transform.views)
    if (collection := store.collection) is not None:
        return _imported_rows(collection)
    videos = store.plan.videos.videos
    for video in videos[:: max(1, len(videos) // SAMPLE)]:
        try:
            found.append(_rows_of(store.plan.root / video.path, store))
        except MediaError:
            continue
    return float(np.mean(found)) if found else None


def _imported_rows(collection: Collection) -> float | None:
    found, videos = [], list(collection.entries)
    for video in videos[:: max(1, len(videos) // SAMPLE)]:
        with suppress(Unreadable):
            found.append(len(collection.rows(video)[1]))
    return float(np.mean(found)) if found else None


def _rows_of(path: Path, store: Store) -> int:
    config = store.config
    if isinstance(config, Logmel):
        return max(0, int((duration_s(path, config.limits) - 0.975) // config.hop_s) + 1)
    if isinstance(config, FromVideo):
        starts = rows(config.sampling, probe(path, config.limits).times_us, *snippet(config))
        return len(starts) * len(config.transform.views)
    raise TypeError(config.kind)
