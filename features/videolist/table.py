"""A CSV of one's own.

path,label,split,group
kitchen/a.mp4,pour,train,anna           split: train, test or nothing; split1, split2, ... where there are several
kitchen/b.mp4,pour;stir,test,berta      several labels with `multi_label: true`

Without a column for the split, a share of the groups is held out as the test side of split "1".
"""

from __future__ import annotations

import re
from pathlib import Path

from features.errors import UserError, nearest
from features.videolist.base import SIDES, Gathered, VideoList
from features.videolist.config import Table
from features.videolist.holdout import side
from features.videolist.names import nfc, place, video_id
from features.videolist.text import lines, table

_SPLIT = re.compile(r"split[ _-]?([a-z0-9][\w.-]*)?", re.ASCII)  # folders of runs are named after it


def files(source: Table) -> list[Path]:
    """The CSV file and the class list, where there is one."""
    return [source.list] if source.classes is None else [source.list, source.classes]


def read(source: Table) -> VideoList:
    """See the module."""
    path = source.list
    order = None if source.classes is None else _classes(source.classes)
    header, rows = table(path, ("path", "label"))
    columns = _splits(header, path)
    name_at, label_at = header.index("path"), header.index("label")
    group_at = header.index("group") if "group" in header else None
    found, known = Gathered(list(columns) or ["1"]), dict[str, tuple[str, ...]]()
    for line, cells in rows:
        id = video_id(cells[name_at], path, line)
        group = "" if group_at is None else cells[group_at]
        text = cells[label_at]
        if text not in known:
            known[text] = _labels(text, source, order, path, line)
        if columns:
            sides = tuple([cells[at] for at in columns.values()])
            if any(value not in SIDES for value in sides):
                got = next(value for value in sides if value not in SIDES)
                where, expected = place(path, line), "train, test or nothing"
                raise UserError("unknown side", where=where, expected=expected, got=got, fix=nearest(got, SIDES[:2]))
        else:
            sides = (side(group or id, source.test_share),)
        found.add(id, known[text], group, sides, path, line)
    names = sorted({name for labels in known.values() for name in labels}) if order is None else list(order)
    return found.finish(names, path, multi_label=source.multi_label)


def _splits(header: list[str], path: Path) -> dict[str, int]:
    """The columns of the splits, by the split's name."""
    found: dict[str, int] = {}
    for number, name in enumerate(header):
        match = _SPLIT.fullmatch(name)
        if match:
            split = match[1] or "1"
            if split in found:
                raise UserError(f"split {split} twice", where=place(path, 1), got=",".join(header))
            found[split] = number
        elif name not in ("path", "label", "group"):
            expected, fix = "path,label[,split...][,group]", nearest(name, ("path", "label", "split", "group"))
            raise UserError("unknown column", where=place(path, 1), expected=expected, got=name, fix=fix)
    return found


def _labels(text: str, source: Table, order: dict[str, None] | None, path: Path, line: int) -> tuple[str, ...]:
    if ";" in text and not source.multi_label:
        where, fix = place(path, line), "set multi_label: true in the config"
        raise UserError("several labels", where=where, expected="one", got=text, fix=fix)
    labels = tuple(dict.fromkeys(nfc(part.strip()) for part in text.split(";") if part.strip()))
    if not labels and not source.multi_label:
        raise UserError("no label", where=place(path, line), expected="a class name", got="nothing")
    for label in labels:
        if order is not None and label not in order:
            expected, fix = f"a class of {source.classes}", nearest(label, order)
            raise UserError("unknown label", where=place(path, line), expected=expected, got=label, fix=fix)
    return labels


def _classes(path: Path) -> dict[str, None]:
    found: dict[str, None] = {}
    for line, text in lines(path):
        if nfc(text) in found:
            raise UserError("class listed twice", where=place(path, line), expected="one line a class", got=text)
        found[nfc(text)] = None
    return found
