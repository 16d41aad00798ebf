"""Features that were made for scoring, kept as stores: a part of the scores is a shard of each.

with Keep(Path("kept"), machine) as keep: output.keep = keep.part
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from extract.fingerprint import fingerprint
from features.atomic import Lock, make_folder, publish_folder, remove, write_json
from features.manifest import Manifest, manifest_path
from features.outcome import Outcome
from features.recipe import digest
from features.store import partial_path, retire, shard_path, write_shard
from pipelines.scoring.machine import Done, Machine


class Keep:
    """Stores ``<extractor>-<digest8>`` in `folder`, one writer at a time."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        self._folder, self._machine, self._stack = folder, machine, ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(Lock(make_folder(self._folder) / "lock"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def part(self, number: int, found: Sequence[Done]) -> None:
        """Publish the rows of these videos as shard `number` of each store, in the place of what a killed run left."""
        marks = [fingerprint(done.clip.media) if done.clip.media is not None else "" for done in found]
        ids = tuple(f"{done.clip.source}/{done.clip.name}" for done in found)
        for name in self._machine.names:
            made_from, stage = self._machine.stages.made_from[name], self._machine.stages.found[name]
            store = self._folder / f"{made_from['extractor']}-{name[:8]}"
            none = np.zeros(0, np.int64), np.zeros((0, *stage.row_shape), stage.dtype)
            rows = [done.video.rows.get(name, {}).get(0, none) if done.video else none for done in found]
            outcomes = [_outcome(done, name) for done in found]
            manifest = Manifest(
                extractor=made_from["extractor"],
                digest=name,
                recipe=made_from["recipe"],
                facts=stage.lasting_facts,
                shard=number,
                list_digest=digest([ids, marks]),
                ids=ids,
                outcomes=tuple(outcomes),
                row_shape=stage.row_shape,
                dtype=stage.dtype.name,
            )
            _publish(store, manifest, np.concatenate([r for _, r in rows]), np.concatenate([t for t, _ in rows]))


def _outcome(done: Done, name: str) -> Outcome:
    if done.video is None:
        return done.clip.refused or Outcome(outcome="refused")
    return done.video.outcomes[name]


def _publish(store: Path, manifest: Manifest, rows: Any, time_us: Any) -> None:
    def blocks(size: int) -> Iterator[Any]:
        return (rows[start : start + size] for start in range(0, len(rows), size))

    partial = partial_path(store, manifest.shard)
    remove(partial)
    manifest = write_shard(make_folder(partial) / "shard.zarr", manifest, blocks, time_us)
    retire(store, manifest.shard)
    publish_folder(partial / "shard.zarr", shard_path(store, manifest.shard))
    write_json(manifest_path(store, manifest.shard), manifest.to_json())
    remove(partial)
