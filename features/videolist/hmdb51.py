"""HMDB51 (Kuehne et al. 2011): 6,766 clips, 51 classes, three splits.

brush_hair_test_split1.txt    April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1        1 trains, 2 tests, 0 is not used

Classes are in the order of their names, which is not that of the file names ("kick" comes before "kick_ball"). Names of
clips hold ``[ ] ! ( ) & ; #`` or start with ``-``: they are compared, never given to a shell or a pattern.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from features.errors import UserError
from features.videolist.base import TEST, TRAIN, UNUSED, Gathered, VideoList
from features.videolist.config import Hmdb51
from features.videolist.names import nfc, place, video_id
from features.videolist.text import MISSING, lines

SPLITS = ("1", "2", "3")
FLAGS = {"0": UNUSED, "1": TRAIN, "2": TEST}
_NAME = re.compile(r"([^.].*)_test_split[123]\.txt")


def files(source: Hmdb51) -> list[Path]:
    """Three files a class, class after class."""
    return [_file(source, name, split) for name in _classes(source) for split in SPLITS]


def read(source: Hmdb51) -> VideoList:
    """See the module."""
    classes = _classes(source)
    found = Gathered(SPLITS)
    for name in classes:
        for split in SPLITS:
            path = _file(source, name, split)
            for line, text in lines(path):
                entry, _, flag = text.rpartition(" ")
                if flag not in FLAGS or not entry:
                    where, expected = place(path, line), "<name>.avi <0, 1 or 2>"
                    raise UserError("malformed line", where=where, expected=expected, got=text)
                if "/" in entry:
                    raise UserError("entry refused", where=place(path, line), expected="a name alone", got=entry)
                id = video_id(f"{name}/{entry.strip()}", path, line)
                sides = tuple(FLAGS[flag] if other == split else None for other in SPLITS)
                found.add(id, (nfc(name),), _group(id, nfc(name)), sides, path, line)
    return found.finish(map(nfc, classes), source.lists)


def _group(id: str, name: str) -> str:
    """The source that a clip was cut from, as clips are called ``<source>_<class>_<view and quality>``."""
    source, found, _ = id.removeprefix(f"{name}/").partition(f"_{name}_")
    return f"{name}/{source}" if found else ""


def _file(source: Hmdb51, name: str, split: str) -> Path:
    return source.lists / f"{name}_test_split{split}.txt"


def _classes(source: Hmdb51) -> list[str]:
    try:
        names = os.listdir(source.lists)
    except OSError as error:
        raise UserError("folder of lists is missing", where=source.lists, got=error.strerror, fix=MISSING) from None
    classes = sorted({match[1] for name in names if (match := _NAME.fullmatch(name))})
    if not classes:
        expected = "files <class>_test_split<1, 2 or 3>.txt"
        raise UserError("no lists", where=source.lists, expected=expected, got="none", fix=MISSING)
    return classes
