"""Clips in, scored rows out: one decoding for all runs, batches across videos, heads on blocks of finished videos.

    options = Options(runs=(Path("work/demo/runs/average-split1-0123abcd/seed0"),), threads=2)
    with Machine(options) as machine:
        for done in machine.score(walk(Path("archive.tar"))): done.rows

Legend: V videos (or windows of videos), C classes, L rows.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch

from extract.config import Frames, Imported
from extract.convert import converter
from extract.sampling import Window
from extract.sources import Clip
from extract.span import Media
from extract.whole import Extraction, Video
from features.batches import Features
from features.errors import UserError, printable
from features.outcome import WITH_ROWS, Outcome
from heads.scoring import Trained
from pipelines.extractors import Stages
from pipelines.plan import WORK

BLOCK: Final = 64  # videos that a head sees together, at most
MOST_REFUSED: Final = 1024  # clips that wait to be told
BLOCK_BYTES: Final = 64 << 20
BLOCK_S: Final = 10.0  # a finished video waits no longer
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is to be said of each video. `threads` are of networks and of decoder processes."""

    runs: tuple[Path, ...]
    threads: int
    cache: Path = WORK / "cache"
    top: int = 5
    logits: bool = False
    window_s: float | None = None
    stride_s: float | None = None
    keep: bool = False  # hand the features out too

    @property
    def window(self) -> Window | None:
        if self.window_s is None:
            return None
        return Window(round(1e6 * self.window_s), round(1e6 * (self.stride_s or self.window_s)))


@dataclass(frozen=True)
class Done:
    """One clip: its rows (one a run, and of each a window), their merged segments, and its features if asked for."""

    clip: Clip
    rows: list[Row]
    segments: list[Row] = field(default_factory=list)
    video: Video | None = None


class Machine:
    """Loaded runs with their extractors, for as many calls of `score` as are wanted."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.runs = [Trained.load(folder) for folder in options.runs]
        self.stages = Stages(options.cache)
        with converter():
            self._reads = {
                run.folder: {modality: self.stages.of(run, modality) for modality in run.head.shapes}  # type: ignore[union-attr]
                for top in self.runs
                for run in top.trained
            }
        self.names = list(dict.fromkeys(name for reads in self._reads.values() for name in reads.values()))
        for name in self.names:
            if isinstance(config := self.stages.found[name].first.config, Frames | Imported):
                got = "frames that are made" if isinstance(config, Frames) else "rows that others made"
                raise UserError("a run that reads no videos scores none", where=options.runs[0], got=got)
        self._stack, self._number = ExitStack(), 0

    def __enter__(self) -> Self:
        self._stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(self.options.threads)
        stages = {name: self.stages.found[name] for name in self.names}
        self._extraction = self._stack.enter_context(Extraction(stages, self.options.threads, self.options.window))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def score(self, clips: Iterable[Clip]) -> Iterator[Done]:
        """Every clip once, about in their order. To be read to its end."""
        clips, more = iter(clips), True
        while more:
            more = yield from self._some(clips)

    def _some(self, clips: Iterator[Clip]) -> Generator[Done, None, bool]:
        """Until there are no more, or very many in a row that are refused, which are told before the others."""
        known: dict[int, Clip] = {}
        refused: deque[Clip] = deque()
        more = False

        def given() -> Iterator[tuple[int, Media]]:
            nonlocal more
            for clip in clips:
                if clip.media is None:
                    refused.append(clip)
                    if len(refused) == MOST_REFUSED:
                        more = True
                        return
                    continue
                known[self._number] = clip
                yield self._number, clip.media
                self._number += 1

        block: list[Video] = []
        began = time.monotonic()
        for video in self._extraction.read(given()):
            block.append(video)
            size = sum(one.nbytes for one in block)
            if len(block) == BLOCK or size > BLOCK_BYTES or time.monotonic() - began > BLOCK_S:
                yield from self._block(block, known)
                block, began = [], time.monotonic()
            while refused:
                yield self._refused(refused.popleft())
        yield from self._block(block, known)
        yield from map(self._refused, refused)
        return more

    def without(self, clip: Clip, outcome: Outcome) -> Done:
        """What is said of a clip that was not looked into."""
        return Done(clip, [self._row(clip, run, outcome, 0) for run in self.runs])

    def _refused(self, clip: Clip) -> Done:
        return self.without(clip, clip.refused or Outcome(outcome="refused"))

    def _block(self, videos: Sequence[Video], known: dict[int, Clip]) -> Iterator[Done]:
        units = [(video, part) for video in videos for part in _windows(video)]
        scores = {run.folder: iter(self._in_parts(run, units)) for run in self.runs}
        for video in videos:
            clip, own = known.pop(video.number), _windows(video)
            rows, segments = [], []
            for run in self.runs:
                logits = {part: next(scores[run.folder]) for part in own}
                found = [self._scored(clip, run, video, part, logits.get(part)) for part in self._all(video, own)]
                rows += found
                segments += merged(found) if self.options.window else []
            yield Done(clip, rows, segments, video if self.options.keep else None)

    def _all(self, video: Video, own: Sequence[int]) -> Sequence[int]:
        """The windows that a video is said to have: also those between and behind `own`, which have rows."""
        window = self.options.window
        if window is None or not video.rows:
            return own
        return range(max(window.count(video.duration_us), own[-1] + 1))

    def _in_parts(self, run: Trained, units: Sequence[tuple[Video, int]]) -> Iterator[npt.NDArray[np.float32]]:
        """(C,) of each of `units`, as many at a time as take `BLOCK_BYTES`: a film may have thousands of windows."""
        part: list[tuple[Video, int]] = []
        size = 0
        for video, number in units:
            part.append((video, number))
            size += sum(found[number][1].nbytes for found in video.rows.values() if number in found)
            if size > BLOCK_BYTES:
                yield from self._scores(run, part)
                part, size = [], 0
        if part:
            yield from self._scores(run, part)

    def _scores(self, run: Trained, units: Sequence[tuple[Video, int]]) -> npt.NDArray[np.float32]:
        """(V,C) of the windows `units`."""
        features = {}
        for one in run.trained:
            arrays, times = {}, {}
            for modality, name in self._reads[one.folder].items():
                stage = self.stages.found[name]
                none = np.zeros(0, np.int64), np.zeros((0, *stage.row_shape), stage.dtype)
                found = [video.rows.get(name, {}).get(part, none) for video, part in units]
                times[modality], arrays[modality] = [t for t, _ in found], [rows for _, rows in found]
            ids = [f"{video.number}/{part}" for video, part in units]
            features[one.folder] = Features.of(ids, arrays, times)
        return run.logits(features)

    def _scored(self, clip: Clip, run: Trained, video: Video, part: int, logits: npt.NDArray[np.float32] | None) -> Row:
        names = {m: name for one in run.trained for m, name in self._reads[one.folder].items()}
        outcome = _joint({m: video.outcomes[name] for m, name in names.items()})
        own = any(part in video.rows.get(name, {}) for name in names.values())
        scored = logits if own else None
        if scored is None and outcome.outcome in WITH_ROWS:
            outcome = Outcome(outcome="too_short", reason="no row in this window")
        if scored is not None and not np.isfinite(scored).all():
            outcome, scored = Outcome(outcome="non_finite", reason="scores are not finite"), None
        row = self._row(clip, run, outcome, video.duration_us)
        if self.options.window is not None:
            start_us = part * self.options.window.stride_us
            row["start_s"], row["end_s"] = start_us / 1e6, (start_us + self.options.window.span_us) / 1e6
            if video.duration_us:
                row["end_s"] = min(row["end_s"], video.duration_us / 1e6)
        if scored is not None:
            wide = scored.astype(np.float64)
            powers = np.exp(wide - wide.max())
            shares = 1 / (1 + np.exp(-wide)) if run.multi_label else powers / powers.sum()
            order = np.argsort(-wide, kind="stable")[: self.options.top].tolist()
            row["labels"] = [run.classes[k] for k in order]
            row["probabilities"] = [float(shares[k]) for k in order]
            row["label"], row["probability"] = row["labels"][0], row["probabilities"][0]
            if self.options.logits:
                row["logits"] = scored.tolist()
        return row

    def _row(self, clip: Clip, run: Trained, outcome: Outcome, duration_us: int) -> Row:
        row: Row = {"source": printable(clip.source), "video": clip.name, "run": run.name}
        row["duration_s"] = duration_us / 1e6 or None
        if self.options.window is not None:
            row |= {"start_s": None, "end_s": None}
        row |= {"label": None, "probability": None, "labels": [], "probabilities": []}
        if self.options.logits:
            row["logits"] = []
        return {**row, "outcome": outcome.outcome, "reason": printable(outcome.reason)}


def merged(rows: Sequence[Row]) -> list[Row]:
    """Windows of one video and run that follow one another with the same label, as one; probabilities are averaged."""
    found: list[list[Row]] = []
    for row in rows:
        if row["label"] is None:
            continue
        last = found[-1][-1] if found else None
        if last is not None and last["label"] == row["label"] and row["start_s"] <= last["end_s"]:
            found[-1].append(row)
        else:
            found.append([row])
    return [
        {
            **{k: group[0][k] for k in ("source", "video", "run", "start_s")},
            "end_s": group[-1]["end_s"],
            "label": group[0]["label"],
            "probability": float(np.mean([row["probability"] for row in group])),
            "windows": len(group),
        }
        for group in found
    ]


def _windows(video: Video) -> list[int]:
    """Those that have rows of anything; the first one stands for a video that has none at all."""
    return sorted({part for windows in video.rows.values() for part in windows}) or [0]


def _joint(outcomes: Mapping[str, Outcome]) -> Outcome:
    """Of several modalities: the first that gives no rows, else the first that gives only some."""
    order = sorted(outcomes, key=lambda m: (outcomes[m].outcome in WITH_ROWS) + (outcomes[m].outcome == "ok"))
    first = outcomes[order[0]]
    if first.outcome == "ok" or len(outcomes) == 1:
        return first
    return Outcome(outcome=first.outcome, reason=f"{order[0]}: {first.reason}")
