"""Temporal Segment Networks: a CNN over any store of maps, its scores averaged over segments; trained end to end.

"Temporal Segment Networks: Towards Good Practices for Deep Action Recognition" (ECCV 2016), §3.1 and §3.2. Training
sees one random row of each segment, the test rows at equal intervals; the consensus is the mean of scores before the
softmax. The trained CNN becomes `network.safetensors`, which an extractor takes as its weights.

uint8 maps (H,W,C) are normalised as the network's input wants; float maps are taken as they are. A video without rows
gets zeros.
The order of rows does not matter.
Legend: B videos, L rows, R rows that are there, C classes or channels, H W height and width.

    head = heads.build("tsn", {"pixels": (64, 64, 3)}, 27, network={"name": "resnet10t"}, crop_px=64)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from extract.networks import Network, NetworkError, save_network
from extract.networks import build as build_network
from features.batches import Select, all_rows, segment_rows
from features.errors import UserError
from heads.augment import centre_box, random_boxes, resample
from heads.base import Head, Shapes

_ROWS_A_STEP: Final = 64  # maps that a test puts through the CNN at once


class Tsn(Head):
    """normalise, crop, CNN, mean over rows."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shapes: Shapes,
        num_classes: int,
        *,
        network: Network | Mapping[str, Any] | Any,
        crop_px: int | None,
        augment: str,
        dropout: float,
        partial_bn: bool,
        precision: str,
    ) -> None:
        super().__init__(shapes, num_classes)
        self.modality, self.height_px, self.width_px, channels = _one_map(shapes)
        if not isinstance(network, Network):
            network = _build(dict(network), num_classes, channels)
        self.network = network
        if network.num_classes != num_classes:
            network.classifier = nn.Linear(network.feature_dim, num_classes)
        side_px = crop_px or network.input.size_px
        ratio = min(1.0, side_px / min(self.height_px, self.width_px))
        network.input = replace(
            network.input, size_px=side_px, crop_ratio=ratio
        )  # how an extractor must feed it from now on
        self.augment, self.precision, self.partial_bn = augment, precision, partial_bn
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mean", _per_channel(network.input.mean, channels), persistent=False)
        self.register_buffer("std", _per_channel(network.input.std, channels), persistent=False)
        self._frozen = [m for m in network.modules() if isinstance(m, _BatchNorm)][1:] if partial_bn else []
        for module in self._frozen:
            module.requires_grad_(False)
        network.to(memory_format=torch.channels_last)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """As always; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def train_rows(self, n: int | None, generator: torch.Generator) -> Select:
        """A random row of each of n segments."""
        return all_rows if n is None else segment_rows(n, generator)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,H,W,C) -> (B,C): padded rows never reach the CNN, nor its batch norms."""
        rows, mask = features[self.modality], masks[self.modality]
        video = mask.nonzero()[:, 0]  # (R,)
        maps = rows[mask]  # (R,H,W,C)
        boxes = self._boxes(len(rows), maps.device)[video]
        consensus = torch.zeros(len(rows), self.num_classes, device=rows.device)
        if not len(maps):
            return consensus
        if self.training:
            scores = self._scores(maps, boxes)
        else:
            steps = zip(torch.split(maps, _ROWS_A_STEP), torch.split(boxes, _ROWS_A_STEP), strict=True)
            scores = torch.cat([self._scores(m, b) for m, b in steps])
        counts = mask.sum(dim=1, keepdim=True).clamp_min(1)
        return consensus.index_add(0, video, scores) / counts

    def _boxes(self, videos: int, device: torch.device) -> Tensor:
        if self.training and self.augment != "none":  # generator None: torch's own, which the training loop seeds
            mirror = self.augment == "crop_flip"
            return random_boxes(videos, self.height_px, self.width_px, mirror=mirror, generator=None).to(device)
        return centre_box(self.height_px, self.width_px, self.network.input.size_px).expand(videos, 4).to(device)

    def _scores(self, maps: Tensor, boxes: Tensor) -> Tensor:
        """(R,H,W,C), (R,4) -> (R,C) float32."""
        images = maps.reshape(len(maps), self.height_px, self.width_px, -1).permute(
            0, 3, 1, 2
        )  # channels last in memory
        normalise = images.dtype == torch.uint8
        images = images.float()
        if (self.height_px, self.width_px) != (self.network.input.size_px,) * 2 or (
            self.training and self.augment != "none"
        ):
            images = resample(images, boxes, self.network.input.size_px)
        if normalise:
            images = (images / 255 - self.mean) / self.std
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            scores: Tensor = self.network.classifier(self.dropout(self.network.trunk(images)))
        return scores.float()

    def extra_files(self) -> dict[str, bytes]:
        """The CNN alone, with the input that it was trained for."""
        return {"network.safetensors": save_network(self.network)}


def _one_map(shapes: Shapes) -> tuple[str, int, int, int]:
    """The only modality, and H, W and channels of its maps; (H,W) is one channel."""
    (modality, shape), *others = shapes.items()
    if others or len(shape) not in (2, 3):
        got = ", ".join(f"{m} {s}" for m, s in shapes.items())
        fix = "train one tsn a modality and fuse their scores"
        raise UserError("tsn reads one store of maps", expected="rows of shape (H,W,C) or (H,W)", got=got, fix=fix)
    return modality, shape[0], shape[1], shape[2] if len(shape) == 3 else 1


def _build(config: dict[str, Any], num_classes: int, channels: int) -> Network:
    try:
        return build_network(config.pop("name"), num_classes=num_classes, in_chans=channels, **config)
    except NetworkError as error:
        raise UserError(f"tsn: {error}") from None


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    """(C,1,1); one value for all where the network's input and the maps differ in channels (flow, log-mel)."""
    found = torch.tensor(values)
    return (found if len(found) == channels else found.mean().expand(channels)).reshape(-1, 1, 1).clone()
