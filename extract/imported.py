"""Rows that others made, on their way into a store of ours: each video's, rounded and checked like our own.

imported(rows, task.items, making.missing, lane)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from extract.decoders import End, Row
from extract.fingerprint import Item
from extract.lanes import Lane
from features.foreign import Collection, Unreadable
from features.outcome import Outcome


def imported(collection: Collection, items: Sequence[Item], videos: Sequence[int], lane: Lane) -> None:
    """Push the rows of `videos`, numbers in `items`, and how each of them ended."""
    for video in videos:
        count = 0
        try:
            for times_us, rows in collection.blocks(items[video].id):
                for time_us, row in zip(times_us.tolist(), rows, strict=True):
                    with np.errstate(over="ignore"):  # what overflows is refused where rows are written
                        lane.push(Row(video, time_us, row))
                    count += 1
        except Unreadable as error:
            lane.push(End(video, Outcome(outcome=error.outcome, reason=error.reason)))
            continue
        lane.push(End(video, Outcome(outcome="ok", rows=count)))
