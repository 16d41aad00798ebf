"""UCF101 (Soomro et al. 2012): classInd.txt ``1 Name``, trainlist0k.txt ``Name/file.avi 1``,
testlist0k.txt the name alone.

Names are matched to classes whatever their case: the class HandstandPushups has files v_HandStandPushups_*.
"""

from __future__ import annotations

import re
from pathlib import Path

from features.errors import UserError, nearest
from features.videolist.config import Ucf101Source
from features.videolist.model import Collector, VideoList, index_of
from features.videolist.text import lines

SPLITS = ("1", "2", "3")
GROUP = re.compile(r"_(g\d+)_c\d+", re.IGNORECASE)


def files(source: Ucf101Source) -> list[Path]:
    return [source.lists / "classInd.txt", *(_list(source, side, k) for k in SPLITS for side in ("train", "test"))]


def read(source: Ucf101Source) -> VideoList:
    classes: dict[int, str] = {}
    for where, line in lines(source.lists / "classInd.txt"):
        number, _, name = line.partition(" ")
        if not number.isdigit() or not name or int(number) in classes:
            raise UserError("malformed list", where=where, expected="a new number and a class name", got=line)
        classes[int(number)] = name.strip()
    known, found = index_of(classes.values()), Collector()
    for split in SPLITS:
        for side in ("train", "test"):
            for where, line in lines(_list(source, side, split)):
                name, given = _fields(line, side, where)
                folder = name.partition("/")[0]
                label = known.get(folder.casefold())
                if label is None:
                    fix = nearest(folder, classes.values())
                    raise UserError(
                        "unknown class", where=where, expected="a class of classInd.txt", got=folder, fix=fix
                    )
                if given is not None and classes.get(given) != label:
                    expected = next(k for k, c in classes.items() if c == label)
                    raise UserError(
                        "label disagrees with classInd.txt", where=where, expected=f"{expected} ({label})", got=given
                    )
                group = GROUP.search(name)
                found.add(name, (label,), split, side, where, group[1].lower() if group else "")
    return found.finish(classes.values(), SPLITS, source.lists)


def _fields(line: str, side: str, where: str) -> tuple[str, int | None]:
    name, space, number = line.rpartition(" ")
    if side == "test" and not (space and number.isdigit()):
        return line, None
    if not space or not number.isdigit():
        raise UserError("malformed list", where=where, expected="Class/file.avi and its class number", got=line)
    return name.strip(), int(number)


def _list(source: Ucf101Source, side: str, split: str) -> Path:
    return source.lists / f"{side}list0{split}.txt"
