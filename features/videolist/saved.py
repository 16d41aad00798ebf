"""``videos.csv``: the list as it stands, in the order that the shards follow. Two comment lines, then one row a video.

save(videos, Path("work/ucf6/videos.csv"))
pandas.read_csv("work/ucf6/videos.csv", comment="#")
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from features.atomic import write_bytes
from features.errors import UserError
from features.videolist.base import SIDES, Action, Video, VideoList
from features.videolist.names import leaves, place

TITLE = "# framepool video list 1"
COLUMNS = ("id", "path", "labels", "group")
TIMED = "actions"  # label, start and end in seconds, where the dataset says when labels hold
FIX = "restore it, or remove it: then the list starts anew, and so do the shards"


def save(videos: VideoList, path: Path) -> None:
    """Write the list, whole or not at all."""
    timed = videos.actions
    head = {"classes": videos.classes, "splits": videos.splits, "multi_label": videos.multi_label}
    head |= {} if timed is None else {"timed": True}
    data = io.BytesIO()
    text = io.TextIOWrapper(data, encoding="utf-8", newline="", write_through=True)
    text.write(f"{TITLE}\n# {json.dumps(head)}\n")
    # All is quoted because a # outside of quotes starts a comment, and HMDB51 has names that start with one.
    rows = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    rows.writerow([*COLUMNS, *(f"split {split}" for split in videos.splits), *([] if timed is None else [TIMED])])
    labels = {video.labels: ";".join(map(str, video.labels)) for video in videos.videos}
    for v in videos.videos:
        own = [] if timed is None else [";".join(f"{label} {start!r} {end!r}" for label, start, end in timed[v.id])]
        rows.writerow([v.id, v.path, labels[v.labels], v.group, *v.splits, *own])
    write_bytes(path, data.getvalue())


def load(path: Path) -> VideoList:
    """Read what `save` wrote. Raises `UserError` with the line where it is something else."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            title, head = stream.readline().rstrip("\n"), stream.readline()
            if title != TITLE:
                raise _damaged(path, 1, TITLE, title)
            return _load(path, head, csv.reader(stream, strict=True))
    except FileNotFoundError:
        raise UserError("video list is missing", where=path, fix="run `framepool index` to make it") from None
    except UnicodeDecodeError:
        raise _damaged(path, 0, "UTF-8", "other bytes") from None
    except csv.Error as error:
        raise _damaged(path, 0, "a CSV file", str(error)) from None


def _load(path: Path, head: str, rows: Iterator[list[str]]) -> VideoList:
    try:
        facts = json.loads(head.removeprefix("# "))
        timed: dict[str, tuple[Action, ...]] | None = {} if facts.get("timed") else None
        found = VideoList((), tuple(facts["classes"]), tuple(facts["splits"]), facts["multi_label"], timed)
    except (ValueError, KeyError, TypeError):
        raise _damaged(path, 2, "# {classes, splits, multi_label}", head.strip()) from None
    header = [*COLUMNS, *(f"split {split}" for split in found.splits), *([] if timed is None else [TIMED])]
    if (got := next(rows, [])) != header:
        raise _damaged(path, 3, ",".join(header), ",".join(got))
    label_sets: dict[str, tuple[int, ...] | None] = {}
    side_sets: dict[tuple[str, ...], tuple[str, ...]] = {}
    videos: dict[str, Video] = {}
    for line, row in enumerate(rows, 4):
        if len(row) != len(header):
            raise _damaged(path, line, f"{len(header)} columns", ",".join(row))
        id, file, cell, group, *rest = row
        own = None if timed is None else _actions(rest.pop(), len(found.classes))
        if cell not in label_sets:
            label_sets[cell] = _indices(cell, len(found.classes))
        labels = label_sets[cell]
        sides = side_sets.setdefault(tuple(rest), tuple(rest))
        untimed = timed is not None and own is None
        if not id or id in videos or labels is None or untimed or any(side not in SIDES for side in sides):
            raise _damaged(path, line, "a row of a video", ",".join(row))
        if timed is not None and own is not None:
            timed[id] = own
        if file and leaves(file):
            raise _damaged(path, line, "a path below the root", file)
        videos[id] = Video(id, file, labels, sides, group)
    return replace(found, videos=tuple(videos.values()))


def _indices(cell: str, classes: int) -> tuple[int, ...] | None:
    """The labels of a cell; None where it holds anything else."""
    parts = cell.split(";") if cell else []
    labels = tuple(int(part) for part in parts if part.isdecimal() and int(part) < classes)
    return labels if len(labels) == len(parts) else None


def _actions(cell: str, classes: int) -> tuple[Action, ...] | None:
    """The actions of a cell; None where it holds anything else."""
    try:
        parts = [part.split() for part in cell.split(";")] if cell else []
        found = tuple((int(label), float(start), float(end)) for label, start, end in parts)
    except ValueError:
        return None
    return found if all(0 <= label < classes for label, _, _ in found) else None


def _damaged(path: Path, line: int, expected: str, got: str) -> UserError:
    return UserError("damaged video list", where=place(path, line), expected=expected, got=got[:80], fix=FIX)
