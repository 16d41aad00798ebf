"""Kinetics-400 (Kay et al. 2017): CSV files ``label,youtube_id,time_start,time_end,split``.

A clip is ``<label with _>/<id>_<start, 6 digits>_<end, 6 digits>``; classes are the sorted labels of the training list.
"""

from __future__ import annotations

from pathlib import Path

from features.errors import UserError, nearest
from features.videolist.config import KineticsSource
from features.videolist.model import Collector, VideoList
from features.videolist.text import rows

COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def files(source: KineticsSource) -> list[Path]:
    return [source.train, source.val]


def read(source: KineticsSource) -> VideoList:
    found, classes = Collector(), dict[str, str]()
    for side, path in (("train", source.train), ("test", source.val)):
        for where, row in rows(path, COLUMNS):
            label = row["label"]
            if side == "train":
                classes.setdefault(label, label)
            elif label not in classes:
                fix = nearest(label, classes)
                raise UserError(
                    "unknown class", where=where, expected="a label of the training list", got=label, fix=fix
                )
            start, end = (_seconds(row[name], name, where) for name in ("time_start", "time_end"))
            clip = f"{label.replace(' ', '_')}/{row['youtube_id']}_{start:06d}_{end:06d}.mp4"
            # An id may start with a hyphen, which the folder before it makes harmless.
            found.add(clip, (classes[label],), "val", side, where, row["youtube_id"])
    return found.finish(sorted(classes), ("val",), source.train)


def _seconds(text: str, name: str, where: str) -> int:
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise UserError("malformed list", where=where, expected=f"{name} in seconds", got=text) from None
