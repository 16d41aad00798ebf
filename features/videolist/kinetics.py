"""Kinetics (Kay et al. 2017): 10-second clips of YouTube videos, one split a held-out file.

label,youtube_id,time_start,time_end,split
making tea,-0Zpw4uZ7bY,10,20,train              is at  making_tea/-0Zpw4uZ7bY_000010_000020.mp4

Classes are the training labels in order. Columns that later releases add (is_cc) are not read.
"""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path

from features.errors import UserError, nearest
from features.videolist.base import TEST, TRAIN, Gathered, VideoList
from features.videolist.config import Kinetics
from features.videolist.names import nfc, place, video_id
from features.videolist.text import table

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
WORDS = {"train": ("train",), "val": ("val", "validate", "validation"), "test": ("test",)}


def files(source: Kinetics) -> list[Path]:
    """The two or three CSV files."""
    return [path for path in (source.train, source.val, source.test) if path is not None]


def read(source: Kinetics) -> VideoList:
    """See the module."""
    splits = ("val",) if source.test is None else ("val", "test")
    found, labels = Gathered(splits), dict[str, str]()
    for part, path in zip(WORDS, files(source), strict=False):
        sides = tuple(TRAIN if part == "train" else TEST if part == split else None for split in splits)
        header, rows = table(path, COLUMNS)
        cells_of = itemgetter(*map(header.index, COLUMNS))
        for line, row in rows:
            label, video, start, end, word = cells_of(row)
            if word.lower() not in WORDS[part]:
                what = "row of another file"
                raise UserError(what, where=place(path, line), expected=f"split {WORDS[part][0]}", got=word or "none")
            if part == "train":
                label = labels.setdefault(label, nfc(label))
            elif label not in labels:
                where, fix = place(path, line), nearest(label, labels)
                expected = f"a label of {source.train.name}"
                raise UserError("unknown label", where=where, expected=expected, got=label or "none", fix=fix)
            else:
                label = labels[label]
            found.add(_id(label, video, start, end, path, line), (label,), video, sides, path, line)
    return found.finish(sorted(labels.values()), source.train)


def _id(label: str, video: str, start: str, end: str, path: Path, line: int) -> str:
    if not label or not video or "/" in label or "/" in video:
        got = f"{label!r}, {video!r}"
        raise UserError("malformed row", where=place(path, line), expected="a label and a YouTube id", got=got)
    if not (start.isdecimal() and end.isdecimal()):
        got = f"{start!r} to {end!r}"
        raise UserError("malformed time", where=place(path, line), expected="whole seconds", got=got)
    return video_id(f"{label.replace(' ', '_')}/{video}_{int(start):06d}_{int(end):06d}", path, line)
