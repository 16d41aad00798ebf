"""Where listed videos are on disk: each folder is read once, each name is compared, none is opened.

A name matches the one file of the same stem, whatever its container: first as it is spelled (accents in any form), else
in any case; spaces in the name of a folder are as good as underscores.

videos = resolve(videos, Path("data/ucf101/videos"))
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from features.errors import UserError
from features.videolist.base import VideoList
from features.videolist.names import nfc, stem

Names = dict[str, tuple[str, ...]]  # what a name is compared by -> the names on disk that compare equal


def resolve(videos: VideoList, root: Path) -> VideoList:
    """`videos` with the paths that are found below `root`; "" where there is no file.

    Raises `UserError` where two files fit one video, or what fits is a folder or a link that leads out of `root`.
    """
    tree = _Tree(root)
    names = [video.id.rpartition("/") for video in videos.videos]
    paths = [tree.spelled(folder, name) for folder, _, name in names]
    # A file that one video is spelled as is never another's in another case: YouTube ids differ by case alone.
    taken = set(paths)
    owners: dict[str, str] = {}
    for number, (folder, _, name) in enumerate(names):
        if paths[number]:
            continue
        path = paths[number] = tree.in_any_case(folder, name, taken)
        id = videos.videos[number].id
        if path and owners.setdefault(path, id) != id:
            got = f"{owners[path]!r} and {id!r}"
            raise UserError("two videos for one file", where=root / path, expected="one", got=got)
    pairs = zip(videos.videos, paths, strict=True)
    found = tuple(video if video.path == path else video._replace(path=path) for video, path in pairs)
    return replace(videos, videos=found)


@dataclass
class _Place:
    """What one folder holds."""

    path: str  # relative to the root, as found
    real: str  # absolute, without links
    files: Names = field(default_factory=dict)  # by stem
    folders: Names = field(default_factory=dict)  # by name
    links: set[str] = field(default_factory=set)

    @cached_property
    def files_in_any_case(self) -> Names:
        return _regrouped(self.files, str.casefold)

    @cached_property
    def folders_in_any_case(self) -> Names:
        return _regrouped(self.folders, _folded)

    @cached_property
    def folders_by_stem(self) -> Names:
        return _regrouped(self.folders, stem)

    def below(self, name: str) -> str:
        """Where `name` is, relative to the root."""
        return f"{self.path}/{name}" if self.path else name


class _Tree:
    def __init__(self, root: Path) -> None:
        self._root, self._real = root, os.path.realpath(root)
        self._top = self._scan("", self._real)
        self._places: dict[str, _Place | None] = {"": self._top}  # by folder of ids
        self._scanned: dict[str, _Place | None] = {}  # by path

    def spelled(self, folder: str, name: str) -> str:
        """The path of the one file of stem `name`, relative to the root; "" where there is none."""
        place = self._place(folder)
        if place is None:
            return ""
        if found := place.files.get(name):
            return self._file(place, found)
        if found := place.folders_by_stem.get(name):
            raise self._not_a_file(place.below(found[0]))
        return ""

    def in_any_case(self, folder: str, name: str, taken: set[str]) -> str:
        """The same, in whatever case; the files in `taken` are others'."""
        place = self._place(folder)
        found = () if place is None else place.files_in_any_case.get(name.casefold(), ())
        free = tuple(file for file in found if place and place.below(file) not in taken)
        return self._file(place, free) if place and free else ""

    def _place(self, folder: str) -> _Place | None:
        """What is in the folder that an id names; None where there is no such folder."""
        if folder not in self._places:
            above: _Place | None = self._top
            for part in folder.split("/"):
                above = None if above is None else self._folder(above, part)
            self._places[folder] = above
        return self._places[folder]

    def _file(self, place: _Place, found: tuple[str, ...]) -> str:
        chosen = self._one(place, found, "file", "video")
        path = place.below(chosen)
        if chosen in place.links:
            real = self._followed(place, chosen)
            if os.path.isdir(real):
                raise self._not_a_file(path)
            return path if real else ""
        return path

    def _folder(self, above: _Place, name: str) -> _Place | None:
        found = above.folders.get(name) or above.folders_in_any_case.get(_folded(name))
        if not found:
            return None
        chosen = self._one(above, found, "folder", "name")
        path = above.below(chosen)
        if path not in self._scanned:
            real = self._followed(above, chosen) if chosen in above.links else os.path.join(above.real, chosen)
            self._scanned[path] = self._scan(path, real)
        return self._scanned[path]

    def _scan(self, path: str, real: str) -> _Place | None:
        place = _Place(path, real)
        try:
            with os.scandir(real) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        place.links.add(entry.name)
                    name = nfc(entry.name)
                    if _is_folder(entry):
                        place.folders[name] = (*place.folders.get(name, ()), entry.name)
                    else:
                        name = stem(name)
                        place.files[name] = (*place.files.get(name, ()), entry.name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError("cannot read folder", where=self._root / path, got=error.strerror) from None
        return place

    def _one(self, place: _Place, found: tuple[str, ...], kind: str, owner: str) -> str:
        if len(found) > 1:
            got = " and ".join(ascii(name) for name in sorted(found))  # as twins may look the same
            where = self._root / place.path
            raise UserError(f"two {kind}s for one {owner}", where=where, expected="one", got=got, fix="keep one")
        return found[0]

    def _followed(self, place: _Place, name: str) -> str:
        """What a link leads to, below the root; "" where that is not there."""
        path = place.below(name)
        try:
            real = os.path.realpath(os.path.join(place.real, name), strict=True)
        except OSError as error:
            if error.errno != errno.ELOOP:
                return ""
            raise UserError("link leads round in a circle", where=self._root / path) from None
        if os.path.commonpath([self._real, real]) != self._real:
            fix = "set root to a folder that holds the files"
            raise UserError("link leads out of the root", where=self._root / path, got=real, fix=fix)
        return real

    def _not_a_file(self, path: str) -> UserError:
        return UserError("not a video", where=self._root / path, expected="a file", got="a folder")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def _folded(name: str) -> str:
    return name.casefold().replace(" ", "_")


def _regrouped(names: Names, key: Callable[[str], str]) -> Names:
    found: Names = {}
    for name, entries in names.items():
        found[key(name)] = (*found.get(key(name), ()), *entries)
    return found
