"""A video list: one row a video, in an order that outlives changes of it.

found = Gathered(["1"])
found.add("Archery/a", ("Archery",), "g01", ("train",), path, line)
videos = found.finish(["Archery"], path)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from features.errors import UserError, nearest
from features.videolist.names import place

TRAIN, TEST, UNUSED = SIDES = ("train", "test", "")


Action = tuple[int, float, float]  # label, start and end in seconds


class Video(NamedTuple):
    """A video as its dataset lists it."""

    id: str  # the listed path without suffix, relative to the root: "Archery/v_Archery_g01_c01"
    path: str  # the file that was found, relative to the root; "" where there is none
    labels: tuple[int, ...]  # indices into the list's classes, ascending
    splits: tuple[str, ...]  # "train", "test" or "" for each of the list's splits
    group: str  # videos of one group (one source, one person) are never on both sides; "" where it is not known


@dataclass(frozen=True)
class VideoList:
    """The videos of a dataset with the names that their labels and splits refer to."""

    videos: tuple[Video, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    multi_label: bool = False
    actions: Mapping[str, tuple[Action, ...]] | None = None  # by id, where the dataset says when labels hold


class Gathered:
    """Videos as annotation lines name them, one after the other. Refuses what is said twice."""

    def __init__(self, splits: Sequence[str]) -> None:
        self.splits = tuple(splits)
        self._found: dict[str, tuple[tuple[str, ...], str, tuple[str | None, ...]]] = {}

    def add(
        self, id: str, classes: tuple[str, ...], group: str, sides: tuple[str | None, ...], path: Path, line: int = 0
    ) -> None:
        """A line that puts video `id` on these sides of the splits; None where it says nothing of a split."""
        old = self._found.get(id)
        if old is not None:
            where = place(path, line)
            if old[0] != classes:
                raise UserError("video of two classes", where=where, expected=_words(old[0]), got=_words(classes))
            sides = tuple(self._merged(*pair, id, where) for pair in zip(self.splits, old[2], sides, strict=True))
        self._found[id] = (classes, group, sides)

    def finish(self, order: Iterable[str], where: Path, *, multi_label: bool = False) -> VideoList:
        """The list, with those classes of `order` that occur."""
        if not self._found:
            raise UserError("empty list", where=where, expected="at least one video", got="none")
        occurring = {name for classes, _, _ in self._found.values() for name in classes}
        classes = tuple(name for name in dict.fromkeys(order) if name in occurring)
        if not classes:
            raise UserError("list without labels", where=where, expected="at least one labelled video", got="none")
        for name in classes:
            if not name.isprintable():
                raise UserError("class name refused", where=where, expected="printable characters", got=repr(name))
        if len(classes) == 1 and not multi_label:
            raise UserError("nothing to tell apart", where=where, expected="two classes or more", got=classes[0])
        # 300,000 videos share a few hundred tuples.
        index = {name: number for number, name in enumerate(classes)}
        label_sets = {names: tuple(sorted({index[n] for n in names})) for names, _, _ in self._found.values()}
        side_sets = {sides: tuple(side or UNUSED for side in sides) for _, _, sides in self._found.values()}
        videos = tuple(
            Video(id, "", label_sets[names], side_sets[sides], group)
            for id, (names, group, sides) in self._found.items()
        )
        return VideoList(videos, classes, self.splits, multi_label)

    @staticmethod
    def _merged(split: str, before: str | None, now: str | None, id: str, where: str) -> str | None:
        if before is None or now is None:
            return now if before is None else before
        if before == now:
            raise UserError("video listed twice", where=where, expected="one line a video", got=id)
        expected = f"{before or 'unused'} in split {split}, as above"
        raise UserError("video on two sides", where=where, expected=expected, got=f"{now or 'unused'} for {id}")


def restricted(videos: VideoList, only: Sequence[str], where: Path) -> VideoList:
    """The videos that have a label among the classes `only`, and of their labels those. Raises `UserError`."""
    unknown = [name for name in only if name not in videos.classes]
    if unknown or len(set(only)) < 2:
        expected = "two classes of the list or more"
        got, fix = (unknown[0], nearest(unknown[0], videos.classes)) if unknown else (_words(tuple(only)), "")
        raise UserError("cannot keep only these classes", where=where, expected=expected, got=got, fix=fix)
    classes = tuple(name for name in videos.classes if name in only)
    new = {videos.classes.index(name): number for number, name in enumerate(classes)}
    kept = ((v, tuple(new[label] for label in v.labels if label in new)) for v in videos.videos)
    actions = videos.actions and {
        id: tuple((new[label], start, end) for label, start, end in own if label in new)
        for id, own in videos.actions.items()
    }
    chosen = tuple(v._replace(labels=labels) for v, labels in kept if labels)
    return replace(videos, videos=chosen, classes=classes, actions=actions and {v.id: actions[v.id] for v in chosen})


def few_shots(videos: VideoList, shots: int, where: Path) -> VideoList:
    """Of the training videos of each split and class the first of each of the first `shots` groups; a video whose group
    is not known is a group of its own. Raises `UserError` where a class has fewer groups, or a video several labels."""
    if videos.multi_label:
        raise UserError("shots are for videos of one class", where=where, got="several labels a video")
    sides = [list(video.splits) for video in videos.videos]
    for number, split in enumerate(videos.splits):
        groups: dict[int, set[str]] = {}
        for video, own in zip(videos.videos, sides, strict=True):
            if own[number] != TRAIN:
                continue
            kept, group = groups.setdefault(video.labels[0], set()), video.group or video.id
            if group in kept or len(kept) == shots:
                own[number] = UNUSED
            kept |= {group} if len(kept) < shots else set()
        for label, kept in groups.items():
            if len(kept) < shots:
                expected, got = f"{shots} groups of training videos", f"{len(kept)} of {videos.classes[label]}"
                raise UserError(
                    "too few groups for the shots", where=f"{where}: split {split}", expected=expected, got=got
                )
    chosen = zip(videos.videos, sides, strict=True)
    return replace(videos, videos=tuple(video._replace(splits=tuple(own)) for video, own in chosen))


def append(previous: VideoList, new: VideoList) -> VideoList:
    """`new` in the order of `previous`, so that full shards stay as they are. What `previous` lacks takes the places of
    what is gone, then those at the end; places still free are taken by the last videos: n lines less change n shards
    and the last ones, not all behind them."""
    by_id = {video.id: video for video in new.videos}
    places = [by_id.pop(video.id, None) for video in previous.videos]
    free = deque(place for place, video in enumerate(places) if video is None)
    for video in by_id.values():
        if free:
            places[free.popleft()] = video
        else:
            places.append(video)
    while free:
        if (last := places.pop()) is None:
            free.pop()
        else:
            places[free.popleft()] = last
    return replace(new, videos=tuple(video for video in places if video is not None))


def problems(videos: VideoList) -> list[str]:
    """What is wrong with a list but does not stop it, a line each: missing files, classes that nothing is known of,
    groups on both sides of a split. Call it with a resolved list."""
    return [*_missing(videos), *_classes(videos), *_overlap(videos)]


def _missing(videos: VideoList) -> Iterator[str]:
    missing = [video.id for video in videos.videos if not video.path]
    if missing:
        yield f"{len(missing)} of {len(videos.videos)} videos have no file: {_few(missing)}"


def _classes(videos: VideoList) -> Iterator[str]:
    if len(videos.classes) == 1:
        yield f"only one class: {videos.classes[0]}; there is nothing to tell apart"
    for number, split in enumerate(videos.splits):
        for side, word in ((TRAIN, "training"), (TEST, "test")):
            shown = {label for video in videos.videos if video.splits[number] == side for label in video.labels}
            without = [name for label, name in enumerate(videos.classes) if label not in shown]
            if len(without) == len(videos.classes):
                yield f"split {split}: no {word} videos"
            elif without:
                yield f"split {split}: classes without {word} videos, {len(without)} of them: {_few(without)}"


def _overlap(videos: VideoList) -> Iterator[str]:
    for number, split in enumerate(videos.splits):
        train, test = (
            {video.group: None for video in videos.videos if video.splits[number] == side} for side in (TRAIN, TEST)
        )
        both = [group for group in train if group and group in test]
        if both:
            yield f"split {split}: groups in both training and test, {len(both)} of them: {_few(both)}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _words(names: tuple[str, ...]) -> str:
    return ";".join(names) or "none"
