"""A folder per class: ``root/<class>/...``, or ``root/train/<class>/...`` beside ``root/test`` or ``root/val``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from features.errors import UserError
from features.videolist.config import FolderSource
from features.videolist.model import Collector, VideoList
from features.videolist.text import README

SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".3gp", ".ogv", ".gif")
)


def files(source: FolderSource) -> list[Path]:
    if not source.root.is_dir():
        raise UserError("video folder is not there", where=source.root, expected="a folder per class", fix=README)
    return sorted(p for p in source.root.rglob("*") if p.is_dir())  # a new video changes its folder's time


def read(source: FolderSource) -> VideoList:
    files(source)
    sides = {"train": source.root / "train", "test": source.root / "test"}
    if not sides["test"].is_dir():
        sides["test"] = source.root / "val"
    divided = all(path.is_dir() for path in sides.values())
    found, classes = Collector(), set[str]()
    for side, top in sides.items() if divided else [("", source.root)]:
        for path in _media(top):
            label = path.relative_to(top).parts[0]
            classes.add(label)
            name = path.relative_to(source.root).as_posix()
            found.add(name, (label,), "1", side or _side(name, source.test_share), str(path))
    return found.finish(sorted(classes), ("1",), source.root)


def _media(top: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES and path.parent != top:
                yield path


def _side(name: str, test_share: float) -> str:
    fraction = int.from_bytes(hashlib.sha256(os.path.splitext(name)[0].encode()).digest()[:8]) / 2**64
    return "test" if fraction < test_share else "train"
