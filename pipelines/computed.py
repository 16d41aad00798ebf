"""What became of the videos of an extractor that keeps no rows: told by the trainings that decode them.

It stands beside the stores in the words of their summaries, so that the results page shows both. Trainings that decode
at the same time, and the processes of one, each add what they saw; a video that was seen again ended as it did last.

    note(store, facts, row_shape, dtype, {"a/one": Outcome(outcome="ok", rows=25)})
    read_store(store.computed).counts                           # {"ok": 1}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from features.atomic import Lock, make_folder, write_bytes
from features.outcome import Outcome, counts
from pipelines.report import stores as report

if TYPE_CHECKING:
    from pipelines.parts import Store

WAIT_S: Final = 120.0  # the processes of a training end an epoch together, and a long list takes seconds to write


def note(
    store: Store, facts: dict[str, Any], row_shape: Sequence[int], dtype: str, outcomes: Mapping[str, Outcome]
) -> None:
    """Add `outcomes`, by video, to what is known of the videos of the list. `row_shape` is *D of a row (*D) of `dtype`;
    `facts` are what a store's manifest would say. Raises `Busy` where another holds the file too long."""
    path = store.computed
    with Lock(make_folder(path.parent) / f"{path.name}.lock", WAIT_S):
        known = dict[str, Outcome]()
        with suppress(OSError, ValueError, KeyError, TypeError):  # nothing yet, or nothing that can be read
            known = {id: Outcome(**ended) for id, ended in json.loads(path.read_bytes())["videos"].items()}
        known |= outcomes
        found = {video.id: known[video.id] for video in store.plan.videos.videos if video.id in known}
        said = report.Store(
            name=store.name,
            digest=store.digest,
            recipe=store.recipe,
            facts=facts,
            statistics={},
            shards=0,
            videos=len(found),
            rows=sum(outcome.rows for outcome in found.values()),
            bytes=0,
            row_shape=tuple(row_shape),
            dtype=dtype,
            counts=counts(found.values()),
            troubles=report.troubles(store.name, found),
        )
        value = {"report": asdict(said), "videos": {id: outcome.to_json() for id, outcome in found.items()}}
        write_bytes(path, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
