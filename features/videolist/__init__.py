"""Video lists: which videos a dataset has, their labels, their splits, and where they are.

A format is a module with `read` (a pure function of its annotation files) and `files` (which those are). Reading,
ordering and finding are three steps, so that a plan needs no video and a new container no new list:

    videos = read(source)                                  # what the annotation files say, paths not known
    videos = append(load(path), videos)                    # in the order that shards already follow
    videos = resolve(videos, source.root)                  # paths of the files that are there
    save(videos, path)                                     # work/<dataset>/videos.csv
"""

from __future__ import annotations

from pathlib import Path

from features.videolist import charades, folder, hmdb51, kinetics, table, ucf101
from features.videolist.base import Video, VideoList, append, few_shots, problems, restricted
from features.videolist.config import Charades, Folder, Hmdb51, Kinetics, Table, Ucf101
from features.videolist.disk import resolve
from features.videolist.saved import load, save

AnySource = Ucf101 | Hmdb51 | Kinetics | Charades | Folder | Table


def read(source: AnySource) -> VideoList:
    """The list that a source's annotation files describe, without paths. Raises `UserError` with file and line."""
    found = _read(source)
    found = restricted(found, source.only, source.root) if source.only else found
    return few_shots(found, source.shots, source.root) if source.shots else found


def _read(source: AnySource) -> VideoList:
    match source:
        case Ucf101():
            return ucf101.read(source)
        case Hmdb51():
            return hmdb51.read(source)
        case Kinetics():
            return kinetics.read(source)
        case Charades():
            return charades.read(source)
        case Folder():
            return folder.read(source)
        case Table():
            return table.read(source)


def annotation_files(source: AnySource) -> list[Path]:
    """What a workflow watches: the files that the list is made from; for a folder per class, the folders."""
    match source:
        case Ucf101():
            return ucf101.files(source)
        case Hmdb51():
            return hmdb51.files(source)
        case Kinetics():
            return kinetics.files(source)
        case Charades():
            return charades.files(source)
        case Folder():
            return folder.files(source)
        case Table():
            return table.files(source)


__all__ = ["Video", "VideoList", "annotation_files", "append", "load", "problems", "read", "resolve", "save"]
