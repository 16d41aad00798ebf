"""What a store will take on disk, before anything is extracted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from extract.config import Clips, Every, Fps, Limits, Pixels, Segments, Uniform
from extract.media import MediaError, probe
from extract.networks import build
from extract.sampling import rows, span
from features.videolist import Video
from pipelines.plan import Store

SAMPLE = 16  # videos whose headers are read where the rows depend on their length


def store_bytes(store: Store) -> str:
    """One line: rows a video, bytes a row, bytes in all before compression."""
    config = store.plan.config.extractors[store.extractor]
    videos = store.plan.videos.videos
    if isinstance(config, Pixels):
        crop = config.transform.crop or config.transform.resize or 0
        row, text = span(config.sampling) * crop * crop * 3, f"{crop}x{crop}x3 uint8"
    else:
        import torch

        with torch.device("meta"):
            network = build(
                config.network.name, library=config.network.library, num_classes=0, options=config.network.options
            )
        row, text = 2 * network.feature_dim, f"{network.feature_dim} float16"
    per_video = _rows_per_video(config.sampling, store.plan.root, videos)
    if per_video is None:
        return f"{text} a row; rows not known, none of the videos can be read"
    size = per_video * row * len(videos) / 1e6
    return f"about {size:,.1f} MB before compression ({per_video:.0f} rows a video, {text} a row)"


def _rows_per_video(
    sampling: Uniform | Every | Fps | Segments | Clips, root: Path, videos: tuple[Video, ...]
) -> float | None:
    if isinstance(sampling, Uniform | Segments):
        return sampling.n
    found = []
    for video in videos[:: max(1, len(videos) // SAMPLE)]:
        try:
            found.append(len(rows(sampling, probe(root / video.path, Limits()).times_us)))
        except MediaError:
            continue
    return float(np.mean(found)) if found else None
