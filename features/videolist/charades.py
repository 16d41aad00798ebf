"""Charades (Sigurdsson et al. 2016): CSV files with id and actions ``c092 11.90 21.20;c147 0.00 12.60``; 157 classes.

A video's labels are all its actions (possibly none); judged by mean average precision.
"""

from __future__ import annotations

from pathlib import Path

from features.errors import UserError, nearest
from features.videolist.config import CharadesSource
from features.videolist.model import Collector, VideoList
from features.videolist.text import lines, rows


def files(source: CharadesSource) -> list[Path]:
    return [source.classes, source.train, source.test]


def read(source: CharadesSource) -> VideoList:
    classes: dict[str, str] = {}
    for where, line in lines(source.classes):
        code, _, text = line.partition(" ")
        if not (code[:1] == "c" and code[1:].isdigit() and text) or code in classes:
            raise UserError("malformed list", where=where, expected="cNNN and a description", got=line)
        classes[code] = line
    found = Collector()
    for side, path in (("train", source.train), ("test", source.test)):
        for where, row in rows(path, ("id", "actions")):
            labels = dict.fromkeys(_labels(row["actions"], classes, where))
            found.add(row["id"], tuple(labels), "1", side, where, row.get("subject", ""))
    return found.finish(classes.values(), ("1",), source.train, multi=True)


def _labels(actions: str, classes: dict[str, str], where: str) -> list[str]:
    found = []
    for action in filter(None, (a.strip() for a in actions.split(";"))):
        parts = action.split()
        if len(parts) != 3:
            raise UserError("malformed list", where=where, expected="cNNN start end", got=action)
        if parts[0] not in classes:
            fix = nearest(parts[0], classes)
            raise UserError("unknown class", where=where, expected="a class of the class file", got=parts[0], fix=fix)
        found.append(classes[parts[0]])
    return found
