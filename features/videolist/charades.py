"""Charades (Sigurdsson et al. 2016): 9,848 videos at home, 157 actions, several a video or none.

Charades_v1_classes.txt    c000 Holding some clothes
Charades_v1_train.csv      id,subject,...,actions,length       actions: c092 11.90 21.20;c147 0.00 12.60

A video's labels are all its actions, whenever they happen. The people of the two sides differ: a subject is a group.
"""

from __future__ import annotations

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
    found = Gathered(("1",))
    for side, path in ((TRAIN, source.train), (TEST, source.test)):
        header, rows = table(path, COLUMNS)
        cells_of = itemgetter(*map(header.index, COLUMNS))
        for line, row in rows:
            name, subject, actions = cells_of(row)
            codes = [_code(action, classes, path, line) for action in actions.split(";") if action.strip()]
            labels = tuple(classes[code] for code in dict.fromkeys(codes))
            found.add(video_id(name, path, line), labels, subject, (side,), path, line)
    return found.finish(classes.values(), source.train, multi_label=True)


def _code(action: str, classes: dict[str, str], path: Path, line: int) -> str:
    parts = action.split()
    if len(parts) != 3:
        where, expected = place(path, line), "<class> <start> <end>"
        raise UserError("malformed action", where=where, expected=expected, got=action.strip())
    if parts[0] not in classes:
        where, fix = place(path, line), nearest(parts[0], classes)
        raise UserError("unknown class", where=where, expected="a class of the class list", got=parts[0], fix=fix)
    return parts[0]


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
