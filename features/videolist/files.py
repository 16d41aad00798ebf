"""From listed names to the files under the root: one scan a folder, and no way out of the root."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from features.errors import UserError
from features.videolist.folder import SUFFIXES
from features.videolist.model import VideoList


def resolve(lst: VideoList, root: Path) -> VideoList:
    """`lst` with the path of the one media file of each video's stem, "" where there is none.

    Raises `UserError` where two files have the stem, or where links lead out of the root or in a circle.
    """
    real = _real(root, root)
    folders: dict[str, dict[str, list[str]]] = {}
    videos = []
    for video in lst.videos:
        folder, _, stem = video.id.rpartition("/")
        files = folders.get(folder)
        if files is None:
            files = folders[folder] = _scan(root, folder, real)
        names = files.get(stem, [])
        if len(names) > 1:
            got = ", ".join(sorted(names))
            fix = "keep one of them under the root"
            raise UserError("two files of one name", where=root / folder, expected=f"one {stem}.*", got=got, fix=fix)
        videos.append(
            video._replace(path=f"{folder}/{names[0]}" if folder else names[0]) if names else video._replace(path="")
        )
    return replace(lst, videos=tuple(videos))


def _scan(root: Path, folder: str, real: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for place in _spellings(root, folder):
        if not place.is_dir():
            continue
        if not _real(place, root).is_relative_to(real):
            raise UserError(
                "a folder leads out of the root", where=place, expected=f"under {real}", got=_real(place, root)
            )
        with os.scandir(place) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)
                if suffix.lower() not in SUFFIXES or not _is_file(entry, root, real):
                    continue
                found.setdefault(unicodedata.normalize("NFC", stem), []).append(entry.name)
    return found


def _spellings(root: Path, folder: str) -> Iterable[Path]:
    """The folder as listed, or as some downloaders write it: decomposed letters, spaces for underscores."""
    names = dict.fromkeys([folder, unicodedata.normalize("NFD", folder)])
    return [
        root / name for name in names if name == folder or ((root / name).is_dir() and not (root / folder).is_dir())
    ]


def _is_file(entry: os.DirEntry[str], root: Path, real: Path) -> bool:
    if entry.is_symlink():
        target = _real(Path(entry.path), root)
        if not target.is_relative_to(real):
            raise UserError("a link leads out of the root", where=entry.path, expected=f"under {real}", got=target)
        return target.is_file()
    return entry.is_file() or not entry.is_dir()  # a pipe or device is listed, and refused when it is opened


def _real(path: Path, root: Path) -> Path:
    try:
        return path.resolve(strict=path.is_symlink())
    except (OSError, RuntimeError) as error:
        raise UserError(
            "a link leads nowhere or in a circle", where=path, got=error, fix=f"mend it under {root}"
        ) from None
