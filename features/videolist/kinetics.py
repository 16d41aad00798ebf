"""Kinetics (Kay et al. 2017): 10-second clips of YouTube videos, one split a held-out file.

label,youtube_id,time_start,time_end,split
making tea,-0Zpw4uZ7bY,10,20,train              is at  making_tea/-0Zpw4uZ7bY_000010_000020.mp4

Classes are the training labels in order. Columns that later releases add (is_cc) are not read.

A `subset` is a file of classes or of ids, one a line: Mini-Kinetics, the 200 classes of "Rethinking Spatiotemporal
Feature Learning" (S3D, Xie et al. 2018), is one. Of several each must let a video pass, but files of ids count as one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

from features.errors import UserError, nearest
from features.videolist.base import TEST, TRAIN, Gathered, VideoList, restricted
from features.videolist.config import Kinetics
from features.videolist.names import nfc, place, stem, video_id
from features.videolist.text import lines, table

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
WORDS = {"train": ("train",), "val": ("val", "validate", "validation"), "test": ("test",)}


def files(source: Kinetics) -> list[Path]:
    """The two or three CSV files, and those of the subset."""
    return [*_tables(source), *source.subset]


def _tables(source: Kinetics) -> list[Path]:
    return [path for path in (source.train, source.val, source.test) if path is not None]


def read(source: Kinetics) -> VideoList:
    """See the module."""
    splits = ("val",) if source.test is None else ("val", "test")
    found, labels = Gathered(splits), dict[str, str]()
    for part, path in zip(WORDS, _tables(source), strict=False):
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
    whole = found.finish(sorted(labels.values()), source.train)
    return _subset(whole, source.subset) if source.subset else whole


def _subset(videos: VideoList, paths: Sequence[Path]) -> VideoList:
    """What the files let pass. Raises `UserError` for a class that is not there, and where no id is."""
    known = {_plain(name): name for name in videos.classes}
    classes, ids = list(videos.classes), set[str]()
    for path in paths:
        named = list(lines(path))
        if not named:
            raise UserError("empty list", where=path, expected="classes or ids, one a line", got="nothing")
        if _plain(named[0][1]) not in known:
            ids |= {_youtube(text) for _, text in named}
            continue
        for line, text in named:
            if _plain(text) not in known:
                expected, fix = "a class of the list", nearest(_plain(text), known)
                raise UserError("unknown class", where=place(path, line), expected=expected, got=text, fix=fix)
        kept = {known[_plain(text)] for _, text in named}
        classes = [name for name in classes if name in kept]
    if ids:
        chosen = tuple(video for video in videos.videos if video.group in ids)
        if not chosen:
            got, expected = f"{len(ids)} ids, {min(ids)} is one", "classes or YouTube ids of the list"
            raise UserError("a subset of nothing", where=paths[-1], expected=expected, got=got)
        videos = replace(videos, videos=chosen)
        shown = {label for video in chosen for label in video.labels}
        classes = [name for name in classes if videos.classes.index(name) in shown]
    return restricted(videos, classes, paths[0])


def _plain(name: str) -> str:
    return nfc(name).replace("_", " ").casefold()


def _youtube(clip: str) -> str:
    """The YouTube id of ``making_tea/-0Zpw4uZ7bY_000010_000020.mp4``, or of less of that."""
    return re.sub(r"_\d{6}_\d{6}$", "", stem(clip.rpartition("/")[2]))


def _id(label: str, video: str, start: str, end: str, path: Path, line: int) -> str:
    if not label or not video or "/" in label or "/" in video:
        got = f"{label!r}, {video!r}"
        raise UserError("malformed row", where=place(path, line), expected="a label and a YouTube id", got=got)
    if not (start.isdecimal() and end.isdecimal()):
        got = f"{start!r} to {end!r}"
        raise UserError("malformed time", where=place(path, line), expected="whole seconds", got=got)
    return video_id(f"{label.replace(' ', '_')}/{video}_{int(start):06d}_{int(end):06d}", path, line)
