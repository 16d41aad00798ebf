"""Charades (Sigurdsson et al. 2016): 9,848 videos at home, 157 actions, several a video or none.

Charades_v1_classes.txt    c000 Holding some clothes
Charades_v1_train.csv      id,subject,...,actions,length       actions: c092 11.90 21.20;c147 0.00 12.60

A video's labels are all its actions, whenever they happen; when they do stands beside them. The people of the two
sides differ: a subject is a group.
"""

from __future__ import annotations

import math
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

from features.errors import UserError, nearest
from features.videolist.base import TEST, TRAIN, Gathered, VideoList
from features.videolist.config import Charades
from features.videolist.names import nfc, place, video_id
from features.videolist.text import lines, table

COLUMNS = ("id", "subject", "actions")


def files(source: Charades) -> list[Path]:
    """The class list and the two CSV files."""
    return [source.classes, source.train, source.test]


def read(source: Charades) -> VideoList:
    """See the module."""
    classes = _classes(source.classes)
    found, timed = Gathered(("1",)), dict[str, list[tuple[str, float, float]]]()
    for side, path in ((TRAIN, source.train), (TEST, source.test)):
        header, rows = table(path, COLUMNS)
        cells_of = itemgetter(*map(header.index, COLUMNS))
        for line, row in rows:
            name, subject, actions = cells_of(row)
            own = [_action(action, classes, path, line) for action in actions.split(";") if action.strip()]
            labels = tuple(dict.fromkeys(name for name, _, _ in own))
            id = video_id(name, path, line)
            found.add(id, labels, subject, (side,), path, line)
            timed[id] = own
    videos = found.finish(classes.values(), source.train, multi_label=True)
    number = {name: k for k, name in enumerate(videos.classes)}
    actions = {id: tuple((number[name], *span) for name, *span in own) for id, own in timed.items()}
    return replace(videos, actions=actions)


def _action(action: str, classes: dict[str, str], path: Path, line: int) -> tuple[str, float, float]:
    """Name of the class, start and end in seconds."""
    parts = action.split()
    if len(parts) != 3:
        where, expected = place(path, line), "<class> <start> <end>"
        raise UserError("malformed action", where=where, expected=expected, got=action.strip())
    if parts[0] not in classes:
        where, fix = place(path, line), nearest(parts[0], classes)
        raise UserError("unknown class", where=where, expected="a class of the class list", got=parts[0], fix=fix)
    try:
        start, end = float(parts[1]), float(parts[2])
    except ValueError:
        start, end = math.nan, math.nan
    if not 0 <= start < math.inf or not 0 <= end < math.inf:
        where, expected = place(path, line), "<class> <start> <end>, in seconds"
        raise UserError("malformed action", where=where, expected=expected, got=action.strip())
    return classes[parts[0]], start, end


def _classes(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line, text in lines(path):
        code, _, description = text.partition(" ")
        if not description.strip():
            raise UserError("malformed class", where=place(path, line), expected="<code> <description>", got=text)
        if code in found:
            raise UserError("class listed twice", where=place(path, line), expected="one line a class", got=text)
        found[code] = nfc(text)
    return found
