"""What is exported of a run, as plain modules of tensors in and a tensor out.

    head      rows (B,L,*D) and masks (B,L) of each modality -> logits (B,C)
    network   samples as they are decoded or stored, uint8 (B,*S) -> features (B,D), normalised inside
    clip      the frames of a video, uint8 (B,L,H,W,3) or snippets (B,L,T,H,W,3) -> logits (B,C)

A clip graph scales and crops inside, runs the network on the rows that the head looks at, rounds features as the store
does, and ends in the head. `Scaled` does what FFmpeg's scaler does, with the same filters, as two matrix products whose
weights follow from the size of the frames.
Legend: B videos, L rows, T frames of a row, H W sides of a frame, S side of the crop, D dims, C classes, N frames.

    logits = Clip(of_run(folder))(frames)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from extract.config import FromVideo, Networked, Pictured
from extract.runtime import whole_network
from extract.samplings import own_frames
from extract.stage import Stage
from features.errors import UserError
from heads.base import Head
from heads.end_to_end import EndToEnd
from pipelines.of_run import OfRun

_CUBIC: Final = -0.6  # the parameter of swscale's bicubic filter; Pillow has -0.5, OpenCV -0.75


class HeadGraph(nn.Module):
    """A head with its modalities as positional inputs: the rows of each, then the masks of each."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head, self.modalities = head, tuple(head.shapes)

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B,L,*D) a modality, (B,L) bool a modality -> (B,C)."""
        m = self.modalities
        logits: Tensor = self.head(
            dict(zip(m, inputs[: len(m)], strict=True)), dict(zip(m, inputs[len(m) :], strict=True))
        )
        return logits.float()


class NetworkGraph(nn.Module):
    """The network of an extractor on its samples, normalised inside."""

    def __init__(self, source: Stage) -> None:
        """Raises what `extract.networks.build` raises."""
        super().__init__()
        if source.model is None:
            raise TypeError(f"{source.config.kind} has no network")
        network, facts = source.model.build()
        self.whole = whole_network(network, facts)

    def forward(self, samples: Tensor) -> Tensor:
        """(B,*S) uint8, or float32 log-mel patches -> (B,*F)."""
        features: Tensor = self.whole(samples)
        return features


class Scaled(nn.Module):
    """Short side to `resize_px`, then the middle `crop_px` by `width_px`, as `extract.scaler.Scaler` does with RGB.

    Each side is a product with a matrix of filter weights (swscale: taps follow the scale when shrinking, and those
    beyond an edge count for the edge), of which only the rows of the crop are made.
    """

    def __init__(self, resize_px: int, crop_px: int, interpolation: str, width_px: int | None = None) -> None:
        super().__init__()
        self.resize_px, self.cubic = resize_px, interpolation != "bilinear"
        self.height_px, self.width_px = crop_px, width_px or crop_px

    def forward(self, frames: Tensor) -> Tensor:
        """(N,H,W,3) uint8 -> (N,crop,width,3) float32 of whole numbers."""
        height, width = frames.shape[1], frames.shape[2]
        images = frames.permute(0, 3, 1, 2).float()  # (N,3,H,W)
        images = images @ self._weights(width, height, self.width_px, self.height_px).T  # (N,3,H,width)
        images = self._weights(height, width, self.height_px, self.width_px) @ images  # (N,3,crop,width)
        return images.round().clamp(0, 255).permute(0, 2, 3, 1)

    def _weights(self, side: int, other: int, crop_px: int, other_px: int) -> Tensor:
        """(crop_px, side)."""
        here, there = torch.full((1,), side).float(), torch.full((1,), other).float()
        scaled = (here * self.resize_px / torch.minimum(here, there)).round()  # the whole side before the crop
        if crop_px != other_px:
            scaled = torch.maximum(scaled, (here * other_px / there).round()).clamp_min(crop_px)
        ratio = here / scaled
        first = ((scaled - crop_px) / 2).floor()
        middle = (torch.arange(crop_px) + first + 0.5) * ratio - 0.5  # (S,)
        taps = torch.arange(3 * side).float() - side
        x = (taps - middle[:, None]).abs() / ratio.clamp_min(1)  # (S,3*side)
        if self.cubic:
            near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
            far = ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
            weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
        else:
            weights = (1 - x).clamp_min(0)
        weights = weights / weights.sum(dim=1, keepdim=True)
        before, inside, after = weights[:, :side], weights[:, side : 2 * side], weights[:, 2 * side :]
        place = torch.arange(side)
        first_edge = (place == 0) * before.sum(dim=1, keepdim=True)
        last_edge = (place == side - 1) * after.sum(dim=1, keepdim=True)
        return inside + first_edge + last_edge


class Clip(nn.Module):
    """frames, the rows that the head looks at, scaling, crop, network, rounding, head."""

    def __init__(self, run: OfRun) -> None:
        """Raises `UserError` where the head's rows do not come from pictures alone."""
        super().__init__()
        self.modality, reader, settings = pictures(run)
        source = run.sources[self.modality]
        crop_px = settings["crop"] or settings["resize"]
        how = settings["resize"] or crop_px, crop_px, settings["interpolation"] or "bilinear"
        self.scaled = Scaled(*how, settings.get("width"))
        self.network = NetworkGraph(source) if isinstance(source.config, Networked) else None
        self.crop_px = source.facts["transform"]["crop"] if reader is not source else None
        self.rows = run.config.rows(self.modality).test  # type: ignore[union-attr]
        self.head, self.window = run.head, window_of(run)

    def forward(self, frames: Tensor) -> Tensor:
        """(B,L,[T,]H,W,3) uint8 -> (B,C)."""
        rows, mask = self._looked_at(frames)
        images = self.scaled(rows.flatten(0, rows.ndim - 4))  # (N,S,S,3)
        if self.crop_px is not None:
            images = _middle(images, self.crop_px)
        samples = images.unflatten(0, rows.shape[:-3])
        if self.network is not None:
            features = self.network(samples.flatten(0, 1)).half().float()  # the store's rounding
            samples = features.unflatten(0, rows.shape[:2])
        logits: Tensor = self.head({self.modality: samples}, {self.modality: mask})
        return logits.float()

    def _looked_at(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B,L,...) -> (B,n,...), (B,n): rows at equal intervals, as in a test; all where the head takes all, or one
        window."""
        videos, length = frames.shape[0], frames.shape[1]
        if self.rows is None or self.window is not None:
            return frames, torch.ones(videos, length, dtype=torch.bool)
        n, j = self.rows, torch.arange(self.rows)
        count = torch.full((1,), length)
        numbers = torch.where(count > n, (2 * j + 1) * count // (2 * n), j.clamp_max(count - 1))  # (n,)
        return frames.index_select(1, numbers), (j < count).expand(videos, -1)


def pictures(run: OfRun) -> tuple[str, Stage, Mapping[str, Any]]:
    """The only modality, the extractor that reads its pictures from the video, and how that one scales them.

    Raises `UserError` where the head reads several modalities, or one that is no picture.
    """
    names = list(run.sources)
    where, fix = run.folder, "export the head and the networks, and make its rows outside of them"
    if len(names) > 1:
        raise UserError("no clip graph of several modalities", where=where, got=", ".join(names), fix=fix)
    source = run.sources[names[0]]
    reader = source.first
    fits = isinstance(source.config, Pictured) or source.config.kind == "pixels"
    if not fits or not isinstance(reader.config, FromVideo):
        raise UserError("no clip graph: its rows are no pictures", where=where, got=source.config.kind, fix=fix)
    if any(one.facts["transform"].get("views") for one in (source, reader)):
        raise UserError("no clip graph of several views of a frame", where=where, got=names[0], fix=fix)
    return names[0], reader, reader.facts["transform"]


def window_of(run: OfRun) -> int | None:
    """How many rows that follow one another are a clip of an end-to-end head on single frames: its graphs take one such
    window, and the score of a video is the mean over its windows."""
    head = run.head
    return head.encoder.config.frames if isinstance(head, EndToEnd) and not head.encoder.clips else None


def frames_a_row(source: Stage) -> int:
    """T: how many frames a row is made of."""
    config = source.first.config
    if not isinstance(config, FromVideo):
        return 1
    pairs = getattr(config, "pairs", None)
    return pairs + 1 if pairs is not None else own_frames(config.sampling)


def _middle(images: Tensor, crop_px: int) -> Tensor:
    """(N,H,W,3) -> (N,crop,crop,3)."""
    top, left = ((side - crop_px) // 2 for side in images.shape[1:3])
    return images[:, top : top + crop_px, left : left + crop_px]
