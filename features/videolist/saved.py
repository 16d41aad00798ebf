"""The list as it is kept: a CSV with its classes and splits in comment lines, so that the order of shards stands."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from features.atomic import write_bytes
from features.errors import UserError
from features.videolist.model import Video, VideoList

COLUMNS = ["id", "path", "labels", "splits", "group"]
FIX = "remove it: the list is read again from the annotation files"


def save(lst: VideoList, path: Path) -> None:
    """Write `lst` to `path`, whole or not at all; pandas reads it with ``comment="#"``."""
    head = {"classes": lst.classes, "splits": lst.splits, "multi_label": lst.multi_label}
    text = io.StringIO()
    text.write(f"#{json.dumps(head)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for v in lst.videos:
        writer.writerow([v.id, v.path, " ".join(map(str, v.labels)), "|".join(v.splits), v.group])
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def load(path: Path) -> VideoList:
    """What `save` wrote. Raises `UserError` where it is damaged."""
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        first, _, rest = text.partition("\n")
        head = json.loads(first.removeprefix("#"))
        reader = csv.reader(io.StringIO(rest, newline=""))
        if next(reader) != COLUMNS:
            raise ValueError(f"expected the columns {','.join(COLUMNS)}")
        shared: dict[str, tuple[str, ...]] = {}
        labels: dict[str, tuple[int, ...]] = {}
        videos = tuple(
            Video(
                row[0],
                row[1],
                labels.setdefault(row[2], tuple(map(int, row[2].split()))),
                shared.setdefault(row[3], tuple(row[3].split("|"))),
                row[4],
            )
            for row in reader
        )
        return VideoList(videos, tuple(head["classes"]), tuple(head["splits"]), bool(head["multi_label"]))
    except (ValueError, KeyError, IndexError, StopIteration, TypeError) as error:
        raise UserError("damaged video list", where=path, got=repr(error), fix=FIX) from None
