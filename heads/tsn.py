"""Temporal Segment Networks: a CNN over any store of maps, its scores averaged over segments; trained end to end.

"Temporal Segment Networks: Towards Good Practices for Deep Action Recognition" (ECCV 2016), §3.1 and §3.2. Training
sees one random row of each segment, the test rows at equal intervals; the consensus is the mean of scores before the
softmax. The trained CNN becomes `network.safetensors`, which an extractor takes as its weights.

`network.reads` says what the rows are (`extract.networks.rows`): pictures (H,W,3 or 1) or clips (T,H,W,3), stacks of
flow (H,W,2l), snippets (l+1,H,W,3) whose differences are seen, log-mel patches (96,64). A video without rows gets
zeros. The order of rows does not matter.
Legend: B videos, L rows, R rows that are there, *S one row, C classes or channels, T H W frames, height and width.

    head = heads.build("tsn", {"pixels": (64, 64, 3)}, 27, network={"name": "resnet10t"}, crop_px=64)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from extract.networks import FromRows, Network, Reads, channels, own_channels, reads_clips, save_network
from features.batches import Select, all_rows, segment_rows
from features.errors import UserError
from heads.augment import MOTION_SCALES, SCALES, centre_box, crop_rows, random_boxes
from heads.base import Head, Shapes, masked_mean
from heads.cnns import built, check_input
from heads.kinds import NetworkConfig
from heads.parallel import waited_for

_ROWS_A_STEP: Final = 64  # maps that a test puts through the CNN at once


class Tsn(Head):
    """crop, normalise, CNN, mean over rows."""

    def __init__(
        self,
        shapes: Shapes,
        num_classes: int,
        *,
        network: Network | NetworkConfig,
        crop_px: int | None,
        augment: str,
        dropout: float,
        partial_bn: bool | str,
        first_conv_lr: float,
    ) -> None:
        super().__init__(shapes, num_classes)
        self.modality, self.shape = _one_map(shapes)
        self.reads = network.input.reads if isinstance(network, Network) else network.reads
        _check_rows(self.reads, self.shape)
        if not isinstance(network, Network):
            network = _build(network, num_classes, self.shape)
        _check_clips(network, self.shape)
        self.network = network
        if network.num_classes != num_classes:
            network.classifier = nn.Linear(network.feature_dim, num_classes)
        if self.reads != "logmel":
            self.height_px, self.width_px = self.shape[-3:-1]
            side_px = crop_px or network.input.size_px
            ratio = min(1.0, side_px / min(self.height_px, self.width_px))
            # How an extractor must feed it from now on.
            network.input = replace(network.input, size_px=side_px, crop_ratio=ratio)
        self.augment, self.first_conv_lr = augment, first_conv_lr
        self.dropout = nn.Dropout(dropout)
        self.rows = FromRows(self.reads, network.input.mean, network.input.std, clips=network.input.frames > 1)
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
        self._frozen = norms if partial_bn == "all" else norms[1:] if partial_bn else []
        for module in self._frozen:
            module.requires_grad_(False)
        self._check_size()
        self._layout = torch.channels_last_3d if network.input.frames > 1 else torch.channels_last
        network.to(memory_format=self._layout)
        self.train()

    def _check_size(self) -> None:
        side_px = self.network.input.size_px
        row = self.shape if self.reads == "logmel" else (*self.shape[:-3], side_px, side_px, self.shape[-1])
        check_input("tsn", self.network, *self.rows(torch.zeros(1, *row)).shape[1:])

    def train(self, mode: bool = True) -> Self:
        """As always; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def train_rows(self, n: int | None, generator: torch.Generator) -> Select:
        """A random row of each of n segments."""
        return all_rows if n is None else segment_rows(n, generator)

    def lr_factors(self) -> dict[str, float]:
        """The first convolution's own, which in flow learns five times as fast as the rest (the authors' code)."""
        if self.first_conv_lr == 1:
            return {}
        path, first = next((p, m) for p, m in self.named_modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
        return {f"{path}.{name}": self.first_conv_lr for name, _ in first.named_parameters()}

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,*S) -> (B,C): padded rows never reach the CNN, nor its batch norms."""
        rows, mask = features[self.modality], masks[self.modality]
        if torch.compiler.is_compiling() and not self.training:
            scores = self._scores(rows.flatten(0, 1), None)  # padding too: how many rows there are is not known
            return masked_mean(scores.view(*mask.shape, -1), mask)
        video = mask.nonzero()[:, 0]  # (R,)
        maps = rows[mask]  # (R,*S)
        boxes = self._boxes(len(rows), maps.device)[video]
        consensus = torch.zeros(len(rows), self.num_classes, device=rows.device)
        if not len(maps) and not waited_for(self.network):
            return consensus
        if self.training:
            scores = self._scores(maps, boxes)
        else:
            steps = zip(torch.split(maps, _ROWS_A_STEP), torch.split(boxes, _ROWS_A_STEP), strict=True)
            scores = torch.cat([self._scores(m, b) for m, b in steps])
        counts = mask.sum(dim=1, keepdim=True).clamp_min(1)
        return consensus.index_add(0, video, scores) / counts

    def _boxes(self, videos: int, device: torch.device) -> Tensor:
        """(B,4); the same for all rows of a video."""
        if self.reads == "logmel":
            return torch.zeros(videos, 4, device=device)
        if self.training and self.augment != "none":  # generator None: torch's own, which the training loop seeds
            scales = SCALES if self.reads == "rgb" else MOTION_SCALES
            mirror = self.augment == "crop_flip"
            boxes = random_boxes(videos, self.height_px, self.width_px, mirror=mirror, generator=None, scales=scales)
            return boxes.to(device)
        return centre_box(self.height_px, self.width_px, self.network.input.size_px).expand(videos, 4).to(device)

    def _scores(self, maps: Tensor, boxes: Tensor | None) -> Tensor:
        """(R,*S), (R,4) or None for the middle -> (R,C) float32."""
        images = self.rows(self._cropped(maps, boxes)).contiguous(memory_format=self._layout)
        scores: Tensor = self.network.classifier(self.dropout(self.network.trunk(images)))
        return scores.float()

    def _cropped(self, maps: Tensor, boxes: Tensor | None) -> Tensor:
        """(R,*S), (R,4) -> each row's box, resampled to the CNN's input; what moves right in a mirror moves left."""
        side_px = self.network.input.size_px
        still = not self.training or self.augment == "none"
        if self.reads == "logmel" or (still and self.height_px == self.width_px == side_px):
            return maps
        return crop_rows(maps, boxes, side_px, flow=self.reads == "flow")

    def extra_files(self) -> dict[str, bytes]:
        """The CNN alone, with the input that it was trained for."""
        return {"network.safetensors": save_network(self.network)}


def _one_map(shapes: Shapes) -> tuple[str, tuple[int, ...]]:
    """The only modality, and the shape of its maps."""
    (modality, shape), *others = shapes.items()
    if others or len(shape) not in (2, 3, 4):
        got = ", ".join(f"{m} {s}" for m, s in shapes.items())
        fix = "train one tsn a modality and fuse their scores"
        raise UserError("tsn reads one store of maps", expected="rows (H,W,C), (T,H,W,C) or (H,W)", got=got, fix=fix)
    return modality, tuple(shape)


def _check_rows(reads: Reads, shape: tuple[int, ...]) -> None:
    """Refuse rows that are of another kind than what the network reads."""
    last = shape[-1]
    expected, fits = {
        "rgb": ("(H,W,3), (T,H,W,3) or grey (H,W,1)", (len(shape), last) in ((3, 1), (3, 3), (4, 3))),
        "flow": ("(H,W,2l)", len(shape) == 3 and last % 2 == 0),
        "rgbdiff": ("(l+1,H,W,3)", len(shape) == 4 and shape[0] > 1 and last == 3),
        "logmel": ("(96,64)", shape == (96, 64)),
    }[reads]
    if not fits:
        where, fix = f"network.reads: {reads}", "set network.reads to what the rows are"
        raise UserError("rows do not fit the network", where=where, expected=expected, got=shape, fix=fix)


def _build(config: NetworkConfig, num_classes: int, shape: tuple[int, ...]) -> Network:
    own = config.name, config.library
    in_chans = channels(config.reads, shape, clips=reads_clips(*own), own=own_channels(*own))
    return built("tsn", config, num_classes=num_classes, in_chans=in_chans, reads=config.reads)


def _check_clips(network: Network, shape: tuple[int, ...]) -> None:
    """Refuse clips for a network of pictures, and pictures for one of clips."""
    clips, reads = network.input.frames > 1, network.input.reads
    if (reads == "rgb" and clips != (len(shape) == 4)) or (clips and reads not in ("rgb", "flow")):
        where, fix = network.notes["name"], "choose a network for these rows, or rows for this network"
        expected = "(T,H,W,3)" if clips else "(H,W,3)"
        raise UserError("rows do not fit the network", where=where, expected=expected, got=shape, fix=fix)
