"""Video lists: which videos there are, their labels and splits, from the annotation files as they are published.

source = Ucf101Source(format="ucf101", root=Path("videos"), lists=Path("ucfTrainTestlist"))
videos = resolve(read(source), source.root)
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from features.videolist import charades, folder, hmdb51, kinetics, table, ucf101
from features.videolist.files import resolve
from features.videolist.model import Video, VideoList, append, problems
from features.videolist.saved import load, save

__all__ = ["Video", "VideoList", "annotation_files", "append", "load", "problems", "read", "resolve", "save"]

_FORMATS: dict[str, ModuleType] = {
    m.__name__.rpartition(".")[2]: m for m in (charades, folder, hmdb51, kinetics, table, ucf101)
}


def read(source: Any) -> VideoList:
    """The list that the annotation files of `source` (a config of `features.videolist.config`) make; paths still "".

    Raises `UserError` with file, line, what was expected and what was there.
    """
    found: VideoList = _FORMATS[source.format].read(source)
    return found


def annotation_files(source: Any) -> list[Path]:
    """The files (for `folder` the folders) that the list is made from, which a workflow watches."""
    found: list[Path] = _FORMATS[source.format].files(source)
    return found
