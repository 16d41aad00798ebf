"""A CSV of one's own: path, label, and a column of train / test for each split; group optional.

path,label,split,group
jump/a.mp4,jump,train,monday
"""

from __future__ import annotations

from pathlib import Path

from features.errors import UserError, nearest
from features.videolist.config import TableSource
from features.videolist.model import Collector, VideoList
from features.videolist.text import rows


def files(source: TableSource) -> list[Path]:
    return [source.file]


def read(source: TableSource) -> VideoList:
    found, seen, splits = Collector(), dict[str, None](), tuple[str, ...]()
    for where, row in rows(source.file, ("path", "label")):
        splits = tuple(name for name in row if name not in ("path", "label", "group"))
        if not splits:
            expected = "a column of train and test, its name the split's"
            raise UserError("malformed list", where=f"{source.file}:1", expected=expected, got=",".join(row))
        labels = (
            tuple(dict.fromkeys(n for n in map(str.strip, row["label"].split(";")) if n))
            if source.multi_label
            else (row["label"],)
        )
        for label in labels:
            if not label or (source.classes is not None and label not in source.classes):
                fix = nearest(label, source.classes or ())
                raise UserError("unknown class", where=where, expected="a label", got=repr(label), fix=fix)
            seen.setdefault(label)
        for split in splits:
            if row[split] not in ("train", "test", ""):
                raise UserError(
                    "malformed list", where=where, expected="train, test or nothing", got=f"{split}: {row[split]}"
                )
            found.add(row["path"], labels, split, row[split], where, row.get("group", ""))
    classes = source.classes if source.classes is not None else sorted(seen)
    return found.finish(classes, splits, source.file, multi=source.multi_label)
