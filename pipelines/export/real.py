"""Real videos of a run's test list, for checking exported graphs: their stored rows, their samples, their frames.

Whatever is no longer there (videos, stores, a temporary store's maps) is left out; the report then says less.

    clips = real_clips(run, 24)
    inputs, logits = real_rows(run, clips)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from av.video.frame import VideoFrame

from extract.config import FromVideo, Networked
from extract.lanes import middle
from extract.media import Decoded, MediaError, decode, probe
from extract.samples import job_of, samples
from extract.sampling import rows as frame_numbers
from extract.stage import Stage
from features.batches import Features
from features.errors import FramepoolError, UserError
from features.outcome import Outcome
from features.recipe import digest
from features.videolist import Video
from pipelines.export.graphs import frames_a_row, pictures, window_of
from pipelines.export.write import Array
from pipelines.of_run import OfRun

if TYPE_CHECKING:
    from pipelines.export.run import Graph


@dataclass(frozen=True)
class Clips:
    """Test videos of a run: their ids and files, and their rows where all stores hold them."""

    run: OfRun
    paths: dict[str, Path]
    features: Features | None

    def frames(self) -> Iterator[tuple[Array, Array]]:
        """((1,L,[T,]H,W,3) uint8, logits (C,)): the frames that the extractor samples, as large as they are coded, and
        what the run makes of the stored rows."""
        if self.features is None:
            return
        modality, reader, _ = pictures(self.run)
        for number, path in enumerate(self.paths.values()):
            if path.is_file() and bool(self.features.has_rows()[number]):
                with suppress(MediaError):
                    found = full_frames(path, reader)
                    if (window := window_of(self.run)) is not None:
                        found = found[np.arange(window) % len(found)]
                    inputs, logits = _inputs(self.run, self.features, torch.tensor([number]))
                    if bool(inputs[f"{modality}_mask"].any()):
                        yield found[None], logits[0]


def real_clips(run: OfRun, videos: int) -> Clips:
    """Up to `videos` of the test videos, evenly over the list, and of the others where these are fewer; none where the
    dataset is not here."""
    try:
        plan = run.plan
        column = plan.videos.splits.index(run.record["split"])
    except (UserError, ValueError):
        return Clips(run, {}, None)
    chosen: list[Video] = []
    for side in ("test", "train") if videos else ():
        own, left = [v for v in plan.videos.videos if v.splits[column] == side], videos - len(chosen)
        chosen += own[:: max(1, len(own) // max(1, left))][:left]
    features = None
    with suppress(FramepoolError):
        if chosen:
            features = Features.open({m: run.store(m) for m in run.sources}, [v.id for v in chosen])
    return Clips(run, {v.id: plan.root / v.path if v.path else Path() for v in chosen}, features)


def real_rows(run: OfRun, clips: Clips) -> tuple[dict[str, Array], Array] | None:
    """The inputs of a head as a test gives them, and our logits (V,C); None without stores."""
    if clips.features is None:
        return None
    return _inputs(run, clips.features, torch.arange(len(clips.features.ids)))


def _inputs(run: OfRun, features: Features, videos: torch.Tensor) -> tuple[dict[str, Array], Array]:
    config: Any = run.config
    window = window_of(run)
    number = {m: config.rows(m).test if window is None else None for m in run.head.shapes}
    select = {m: run.head.test_rows(n) for m, n in number.items()}
    rows, masks = features.batch(videos, select, None, config.align)
    rows, masks = ({m: part[:, :window] for m, part in both.items()} for both in (rows, masks))
    with torch.inference_mode():
        logits = run.head(rows, masks).float().numpy()
    named = {**rows, **{f"{m}_mask": mask for m, mask in masks.items()}}
    return {name: value.numpy() for name, value in named.items()}, logits


def real_features(graph: Graph, clips: Clips) -> Iterator[tuple[Array, Array]]:
    """(samples (L,*S), rows (L,*D)) of each video, for a network: what it reads of the video, or of the store that it
    reads where that is here; and the stored rows, or where those are of less than fp32 what the network makes of it."""
    modality = graph.name
    source = clips.run.sources[modality]
    if clips.features is None or not isinstance(source.config, Networked):
        return
    found = _decoded(source, clips) if source.before is None else _stored(modality, source, clips)
    for number, taken in found:
        rows = _rows(clips.features, modality, number).astype(np.float32)
        if not len(rows) or len(taken) != len(rows):
            continue
        if source.config.precision != "fp32":
            with torch.inference_mode():
                rows = graph.module(torch.from_numpy(taken)).numpy()
        yield taken, rows


def _decoded(source: Stage, clips: Clips) -> Iterator[tuple[int, Array]]:
    """(video, samples (L,*S)) of those that can be read."""
    job = job_of(source.config, source.facts["transform"])
    for number, path in enumerate(clips.paths.values()):
        if not path.is_file():
            continue
        found = [item[1].copy() for _, item in samples(path, {0: job}) if not isinstance(item, Outcome)]
        if found:
            yield number, np.stack(found)


def _stored(modality: str, source: Stage, clips: Clips) -> Iterator[tuple[int, Array]]:
    """The same of a network that reads another store; nothing where that is gone, as temporary rows are."""
    made_from = clips.run.record.get("extractors", {}).get(modality, {}).get("source")
    if made_from is None or clips.features is None:
        return
    folder = clips.run.plan.work / "features" / f"{made_from['extractor']}-{digest(made_from['recipe'])[:8]}"
    try:
        before = Features.open({"before": folder}, clips.features.ids)
    except FramepoolError:
        return
    cut = middle(tuple(before.rows["before"].data.shape[1:]), source.facts["transform"].get("crop"))
    for number in range(len(before.ids)):
        yield number, np.ascontiguousarray(_rows(before, "before", number)[(slice(None), *cut)])


def _rows(features: Features, modality: str, number: int) -> Array:
    """(L,*D) of a video."""
    rows = features.rows[modality]
    first = int(rows.starts[number])
    return rows.data[first : first + int(rows.lengths[number])].numpy()


def full_frames(path: Path, reader: Stage) -> Array:
    """(L,[T,]H,W,3) uint8: the frames that the extractor `reader` samples, unscaled. Raises `MediaError`."""
    config = reader.config
    if not isinstance(config, FromVideo):
        raise TypeError(config.kind)
    length = frames_a_row(reader)
    step = getattr(config, "step", getattr(config.sampling, "stride", 1))
    wanted = frame_numbers(config.sampling, probe(path, config.limits).times_us, length, step)
    kept: dict[int, Array] = {}
    for number, _, frame in decode(path, config.limits, Decoded()):
        if number in wanted:
            kept[number] = _rgb(frame)
    rows = [row for row in wanted.tolist() if all(n in kept for n in row)]
    if not rows:
        raise MediaError("too_short", "no row")
    return np.stack([kept[row[0]] if length == 1 else np.stack([kept[n] for n in row]) for row in rows])


def _rgb(frame: VideoFrame) -> Array:
    image: Array = frame.to_ndarray(format="rgb24")
    return image
