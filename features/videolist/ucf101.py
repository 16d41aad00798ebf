"""UCF101 (Soomro, Zamir, Shah 2012): 13,320 clips, 101 classes, 25 groups a class, three splits.

classInd.txt       1 ApplyEyeMakeup
trainlist01.txt    ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
testlist01.txt     ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi

Folders are matched to classes in any case, as the dataset spells HandstandPushups and HandStandPushups. Group
g08 of one class has nothing to do with that of another.
"""

from __future__ import annotations

import re
from pathlib import Path

from features.errors import UserError, nearest
from features.videolist.base import TEST, TRAIN, Gathered, VideoList
from features.videolist.config import Ucf101
from features.videolist.names import nfc, place, video_id
from features.videolist.text import lines

SPLITS = ("1", "2", "3")
_GROUP = re.compile(r"_(g\d+)_c\d+$")
_LABELLED = re.compile(r"(.+?)\s+(\d+)")


def files(source: Ucf101) -> list[Path]:
    """The seven files."""
    names = [f"{side}list0{split}.txt" for split in SPLITS for side in (TRAIN, TEST)]
    return [source.lists / name for name in ("classInd.txt", *names)]


def read(source: Ucf101) -> VideoList:
    """See the module."""
    index, *lists = files(source)
    classes = _classes(index)
    numbers = {name.casefold(): number for number, name in classes.items()}
    found = Gathered(SPLITS)
    for order, path in enumerate(lists):
        split, side = order // 2, (TRAIN, TEST)[order % 2]
        sides = tuple(side if number == split else None for number in range(len(SPLITS)))
        for line, text in lines(path):
            entry, number = _entry(text, side == TRAIN, path, line)
            id = video_id(entry, path, line)
            folder, slash, _ = id.partition("/")
            if not slash:
                expected = "<class>/v_<class>_g<group>_c<clip>.avi"
                raise UserError("video without a class folder", where=place(path, line), expected=expected, got=entry)
            own = numbers.get(folder.casefold())
            if own is None:
                expected, fix = f"a class of {index.name}", nearest(folder, classes.values())
                raise UserError("unknown class", where=place(path, line), expected=expected, got=folder, fix=fix)
            if number not in (own, None):
                got = f"{number} ({classes.get(number, 'no class')})"
                where, expected = place(path, line), f"{own} ({classes[own]}, its folder)"
                raise UserError("label of another class", where=where, expected=expected, got=got)
            group = _GROUP.search(id)
            found.add(id, (classes[own],), f"{classes[own]}/{group[1]}" if group else "", sides, path, line)
    return found.finish(classes.values(), source.lists)


def _entry(text: str, labelled: bool, path: Path, line: int) -> tuple[str, int | None]:
    match = _LABELLED.fullmatch(text)
    if match:
        return match[1], int(match[2])
    if labelled:
        raise UserError("line without a label", where=place(path, line), expected="<path> <class number>", got=text)
    return text, None


def _classes(path: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    seen: set[str] = set()
    for line, text in lines(path):
        number, _, name = text.partition(" ")
        name = nfc(name.strip())
        if not number.isdecimal() or not name:
            raise UserError("malformed class", where=place(path, line), expected="<number> <class>", got=text)
        if int(number) in found or name.casefold() in seen:
            raise UserError("class listed twice", where=place(path, line), expected="one line a class", got=text)
        found[int(number)] = name
        seen.add(name.casefold())
    return found
