"""Rows that others made, on their way into a store of ours: each video's, rounded and checked like our own.

imported(rows, task.items, making.missing, lane, np.dtype("float16"))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from extract.decoders import End, Row
from extract.fingerprint import Item
from extract.lanes import Lane
from features.foreign import Collection, Unreadable
from features.outcome import Outcome


def imported(
    collection: Collection, items: Sequence[Item], videos: Sequence[int], lane: Lane, dtype: np.dtype[Any]
) -> None:
    """Push the rows of `videos`, numbers in `items`, for a store of `dtype`, and how each of them ended."""
    for video in videos:
        count = 0
        try:
            for times_us, rows in collection.blocks(items[video].id):
                _check(rows, dtype)
                for time_us, row in zip(times_us.tolist(), rows, strict=True):
                    with np.errstate(over="ignore"):  # what overflows is refused where rows are written
                        lane.push(Row(video, time_us, row))
                    count += 1
        except Unreadable as error:
            lane.push(End(video, Outcome(outcome=error.outcome, reason=error.reason)))
            continue
        lane.push(End(video, Outcome(outcome="ok", rows=count)))


def _check(rows: npt.NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Refuse what whole numbers of `dtype` cannot hold: assigning would turn it into others. Floats turn it into
    infinity, which is refused where rows are written."""
    if dtype.kind == "f" or not rows.size:
        return
    if not np.isfinite(rows).all():
        raise Unreadable("non_finite", f"a row that is not finite, for {dtype}")
    low, high = rows.min(), rows.max()
    if low < np.iinfo(dtype).min or high > np.iinfo(dtype).max:
        raise Unreadable("undecodable", f"numbers from {low:g} to {high:g}, {dtype} holds 0 to {np.iinfo(dtype).max}")
    if rows.dtype.kind == "f" and (rows != np.rint(rows)).any():
        raise Unreadable("undecodable", f"numbers that are not whole, as {dtype} holds them: set dtype: float16")
