"""Features that were made for scoring, kept as stores: a part of the scores is a shard of each.

with Keep(Path("kept"), machine, output) as keep: output.keep = keep.part
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from extract.fingerprint import fingerprint
from features.atomic import Lock, make_folder, publish_folder, remove, write_json
from features.errors import DamagedStore, UserError, printable
from features.manifest import Manifest, manifest_path, shards
from features.outcome import Outcome
from features.recipe import digest
from features.store import partial_path, retire, shard_path, write_shard
from pipelines.scoring.machine import Done, Machine
from pipelines.scoring.output import Output


class Keep:
    """Stores ``<extractor>-<digest8>`` in `folder`, of the scores of `output` alone; one writer at a time.

    Raises `UserError` where they are of others.
    """

    def __init__(self, folder: Path, machine: Machine, output: Output) -> None:
        self._folder, self._machine, self._output, self._stack = folder, machine, output, ExitStack()
        self._stores = {
            name: folder / f"{machine.stages.made_from[name]['extractor']}-{name[:8]}" for name in machine.names
        }

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(Lock(make_folder(self._folder) / "lock"))
            self._take_up()
            self._stack = stack.pop_all()
        return self

    def _take_up(self) -> None:
        mark, own = self._folder / "scores.json", str(self._output.path.resolve())
        try:
            found = json.loads(mark.read_bytes())["scores"] if mark.exists() else None
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedStore("features without scores", where=mark, got=error, fix="remove the folder") from None
        if found != own and (found or any(shards(store) for store in self._stores.values())):
            fix = "choose another --keep-features"
            raise UserError("features of other videos", where=self._folder, expected=own, got=found, fix=fix)
        write_json(mark, {"scores": own})
        for store in self._stores.values():
            for number in shards(store):
                if number >= self._output.parts:  # of scores that were begun anew since
                    retire(store, number)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def part(self, number: int, found: Sequence[Done]) -> None:
        """Publish the rows of these videos as shard `number` of each store, in the place of what a killed run left."""
        marks = [fingerprint(done.clip.media) if done.clip.media is not None else "" for done in found]
        ids = tuple(printable(f"{done.clip.source}/{done.clip.name}") for done in found)
        for name in self._machine.names:
            made_from, stage = self._machine.stages.made_from[name], self._machine.stages.found[name]
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
            _publish(
                self._stores[name], manifest, np.concatenate([r for _, r in rows]), np.concatenate([t for t, _ in rows])
            )


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
