"""A folder per class, no lists.

<root>/<class>/.../a.mp4                                a share of the groups is held out, as the test side of split "1"
<root>/train/<class>/a.mp4  <root>/val/<class>/b.mp4    splits "val", "test" or both, after the folders that are there;
                                                        also training, valid, validation, testing, in any case
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from features.errors import UserError
from features.videolist.base import TEST, TRAIN, Gathered, VideoList
from features.videolist.config import Folder
from features.videolist.holdout import side
from features.videolist.names import nfc, stem, video_id

HELD_OUT = ("val", "test")
_SIDES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


def files(source: Folder) -> list[Path]:
    """The folders themselves: a new video changes its folder's time, a new class that of the folder above."""
    return [source.root, *_folders(source.root)]


def read(source: Folder) -> VideoList:
    """See the module. Files that are not called as a video, and hidden ones, are not looked at."""
    root = source.root
    splits = _splits(root)
    found, seen = Gathered(splits or ("1",)), dict[str, str]()
    classes: dict[str, None] = {}
    for path in _videos(root, root):
        id = video_id(path, root)
        if id in seen:
            got = f"{seen[id]!a} and {path!a}"  # escaped, as twins may look the same
            raise UserError("two files for one video", where=root, expected="one", got=got, fix="keep one")
        seen[id] = path
        parts = id.split("/")
        if len(parts) < (3 if splits else 2):
            raise UserError("video outside the class folders", where=root / path, expected="<class>/<video>")
        group = _group(source.group, id)
        if splits:
            own = _side(parts[0])
            sides = tuple(TRAIN if own == "train" else TEST if own == name else None for name in splits)
        else:
            sides = (side(group or id, source.test_share),)
        name = parts[1 if splits else 0]
        classes[name] = None
        found.add(id, (name,), group, sides, root)
    return found.finish(sorted(classes), root)


def _splits(root: Path) -> tuple[str, ...]:
    """The held-out folders beside ``train``; none where the classes are at the top."""
    top = [entry.name for entry in _entries(root) if entry.is_dir(follow_symlinks=False)]
    names = {_side(name): name for name in top}
    splits = tuple(name for name in HELD_OUT if name in names) if "train" in names else ()
    others = [name for name in top if names[_side(name)] != name or _side(name) not in ("train", *splits)]
    if splits and others:
        expected, got = f"only train, {', '.join(splits)}", f"{others[0]!r} beside them"
        raise UserError("folders mixed", where=root, expected=expected, got=got, fix="move it into one of them")
    return splits


def _side(folder: str) -> str:
    """The side that a folder's name speaks of, if it does of one."""
    return _SIDES.get(folder.lower(), folder.lower())


def _group(pattern: str | None, id: str) -> str:
    match = re.search(pattern, id) if pattern else None
    return (match[1] or "") if match else ""


def _videos(folder: Path, root: Path) -> Iterator[str]:
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _videos(folder / entry.name, root)
        elif stem(entry.name) != entry.name:
            yield (folder / entry.name).relative_to(root).as_posix()


def _folders(folder: Path) -> Iterator[Path]:
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield folder / entry.name
            yield from _folders(folder / entry.name)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: nfc(e.name))
    except OSError as error:
        raise UserError("cannot read folder", where=folder, got=error.strerror) from None
    for entry in entries:
        # A linked folder would leave the root, go round for ever, or list the same files twice.
        if entry.is_symlink() and os.path.isdir(entry.path):
            raise UserError("linked folder", where=entry.path, expected="a folder of its own", got="a link")
    return entries
