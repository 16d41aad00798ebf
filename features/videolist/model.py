"""A video list: one row a video, in an order that later lists keep."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from features.errors import UserError

Side = Literal["train", "test", ""]


class Video(NamedTuple):
    """One video. `path` is relative to the root, "" where no file was found; `splits` has a side for each split."""

    id: str
    path: str
    labels: tuple[int, ...]
    splits: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class VideoList:
    """`labels` of the videos count in `classes`; `splits` names the splits that the videos' sides belong to."""

    videos: tuple[Video, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    multi_label: bool = False


@dataclass
class Entry:
    """A video as the lists tell of it: its label names, its side in each split, and where it was first named."""

    id: str
    labels: tuple[str, ...]
    where: str
    group: str = ""
    sides: dict[str, str] = field(default_factory=dict)


class Collector:
    """Gathers entries from one or many files, refusing what contradicts itself."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def add(self, name: str, labels: tuple[str, ...], split: str, side: str, where: str, group: str = "") -> None:
        """`name` is the listed path; its suffix is dropped, because the container may differ."""
        video = stem_of(name, where)
        entry = self.entries.get(video)
        if entry is None:
            entry = self.entries[video] = Entry(video, labels, where, group)
        elif entry.labels != labels:
            expected = f"{', '.join(entry.labels)} as in {entry.where}"
            raise UserError(
                "a video with two labels", where=where, expected=expected, got=f"{name}: {', '.join(labels)}"
            )
        if split in entry.sides:
            if side == entry.sides[split]:
                what, fix = "a video listed twice", f"remove one of them (first: {entry.where})"
            else:
                what, fix = "a video in training and test of one split", f"decide for one (first: {entry.where})"
            raise UserError(what, where=where, got=name, fix=fix)
        entry.sides[split] = side

    def finish(
        self, classes: Iterable[str], splits: tuple[str, ...], where: object, *, multi: bool = False
    ) -> VideoList:
        """The list: classes that occur, in the order given; videos in the order that they were first named."""
        if not self.entries:
            raise UserError("empty list", where=where, expected="videos", got="none")
        occur = {label for entry in self.entries.values() for label in entry.labels}
        kept = tuple(c for c in classes if c in occur)
        number = {name: k for k, name in enumerate(kept)}
        sides: dict[tuple[str, ...], tuple[str, ...]] = {}  # a few distinct tuples serve 300,000 videos
        labels: dict[tuple[str, ...], tuple[int, ...]] = {}
        videos = []
        for e in self.entries.values():
            side = tuple(e.sides.get(s, "") for s in splits)
            numbers = labels.setdefault(e.labels, tuple(sorted(number[name] for name in e.labels)))
            videos.append(Video(e.id, "", numbers, sides.setdefault(side, side), e.group))
        return VideoList(tuple(videos), kept, splits, multi)


def stem_of(name: str, where: str) -> str:
    """The id of a listed path: without its suffix, with forward slashes, normalised. Refuses what could lead astray."""
    reason = _refused(name)
    if reason:
        expected = "a path under the root"
        raise UserError("list entry refused", where=where, expected=expected, got=f"{name[:200]} ({reason})")
    parts = [p for p in unicodedata.normalize("NFC", name).split("/") if p not in ("", ".")]
    head, dot, tail = parts[-1].rpartition(".")
    if dot and head and tail.isalnum() and len(tail) <= 5:
        parts[-1] = head
    return "/".join(parts)


def _refused(name: str) -> str:
    if not name.strip():
        return "empty"
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        return "control character"
    if name.startswith(("/", "~", "\\")) or name[1:3] in (":\\", ":/"):
        return "absolute"
    if name.startswith(("-", "|")):
        return "starts like an option or a command"
    protocol = name.partition(":")[0]
    if "://" in name or (":" in name and protocol.isalnum() and "/" not in protocol and protocol.islower()):
        return "a URL or protocol"
    if ".." in name.replace("\\", "/").split("/"):
        return "leads out of the root"
    return ""


def append(previous: VideoList, new: VideoList) -> VideoList:
    """`new`, with the videos of `previous` that are still in it first, in their place; so shards keep their videos."""
    by_id = {v.id: v for v in new.videos}
    old = [by_id.pop(v.id) for v in previous.videos if v.id in by_id]
    return replace(new, videos=(*old, *by_id.values()))


def problems(lst: VideoList) -> list[str]:
    """What a user should know of the list, a line each; nothing here stops a run."""
    found = []
    missing = [v.id for v in lst.videos if not v.path]
    if missing:
        found.append(f"{len(missing)} of {len(lst.videos)} videos have no file under the root, the first {missing[0]}")
    if len(lst.classes) < 2:
        found.append(f"only {len(lst.classes)} class: nothing to tell apart")
    if lst.multi_label and (bare := sum(not v.labels for v in lst.videos)):
        found.append(f"{bare} videos have no label")
    for column, split in enumerate(lst.splits):
        found += _split_problems(lst, column, split)
    return found


def _split_problems(lst: VideoList, column: int, split: str) -> list[str]:
    sides = {s: [v for v in lst.videos if v.splits[column] == s] for s in ("train", "test")}
    found = [f"split {split}: no {side} videos" for side, videos in sides.items() if not videos]
    seen = {label for v in sides["train"] for label in v.labels}
    untrained = [name for k, name in enumerate(lst.classes) if k not in seen]
    if untrained and sides["train"]:
        names = ", ".join(untrained[:5]) + (", ..." if len(untrained) > 5 else "")
        found.append(f"split {split}: {len(untrained)} classes without training videos: {names}")
    groups = Counter((v.labels, v.group) for v in sides["train"] if v.group)
    shared = next((v for v in sides["test"] if v.group and (v.labels, v.group) in groups), None)
    if shared is not None:
        found.append(f"split {split}: WARNING: group {shared.group} of {shared.id} is in training and test")
    return found


def index_of(names: Iterable[str]) -> Mapping[str, str]:
    """Names by their case-folded form: class indexes and file names differ in case (HandstandPushups)."""
    return {name.casefold(): name for name in names}


def where_of(path: Path, line: int) -> str:
    """``file:line``, as errors say it."""
    return f"{path}:{line}"
