"""HMDB51 (Kuehne et al. 2011): 153 files ``<class>_test_split{1,2,3}.txt`` of lines ``<file>.avi <flag>``.

Flag 1 is training, 2 test, 0 unused. Classes are in the order of their names, not of the file names.
"""

from __future__ import annotations

import re
from pathlib import Path

from features.errors import UserError
from features.videolist.config import Hmdb51Source
from features.videolist.model import Collector, VideoList
from features.videolist.text import README, lines

SPLITS = ("1", "2", "3")
FILE = re.compile(r"(.+)_test_split([123])\.txt")
SIDES = {"0": "", "1": "train", "2": "test"}


def files(source: Hmdb51Source) -> list[Path]:
    found = sorted(p for p in source.lists.iterdir() if FILE.fullmatch(p.name)) if source.lists.is_dir() else []
    if not found:
        expected = "files <class>_test_split1.txt"
        raise UserError("annotation files are not there", where=source.lists, expected=expected, got="none", fix=README)
    return found


def read(source: Hmdb51Source) -> VideoList:
    paths = {tuple(m.groups()): p for p in files(source) if (m := FILE.fullmatch(p.name))}
    classes = sorted({name for name, _ in paths})
    found = Collector()
    for name in classes:
        for split in SPLITS:
            path = paths.get((name, split), source.lists / f"{name}_test_split{split}.txt")
            for where, line in lines(path):
                video, _, flag = line.rpartition(" ")
                if not video or flag not in SIDES:
                    raise UserError("malformed list", where=where, expected="a file name and 0, 1 or 2", got=line)
                found.add(f"{name}/{video.strip()}", (name,), split, SIDES[flag], where)
    return found.finish(classes, SPLITS, source.lists)
