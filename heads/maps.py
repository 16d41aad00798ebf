"""What heads on maps of clips share: rows that are maps, or clips with the network in front that makes the maps.

A row is one view of one clip of a video: its map (C,T,H,W) from a `trunk` extractor with ``pool: false``, or with a
`network` the uint8 clip (T,H,W,3) itself, and the head trains end to end. The same head with the same weights gives the
same scores either way. Training sees some rows of a video, the test all; `consensus` makes one score of several:

    softmax     the logarithm of the mean probability (in training the mean of the logits)
    logits      the mean of the logits
    max         the largest logit of each class, for videos with several labels

A video without rows gets zeros. The order of rows does not matter.
Legend: B videos, L rows, R rows that are there, *S one row, K classes; C channels, T frames, H W of a map.

    class Mine(OfMaps):
        def scores(self, maps): ...                     # (R,C,T,H,W) -> (R,K)
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from extract.networks import FromRows, Network, save_network
from features.errors import UserError
from heads.augment import centre_box, crop_rows, jittered_boxes
from heads.base import Head, Shapes, log_mean_softmax, masked_mean
from heads.cnns import built, check_input
from heads.map_kinds import TrunkConfig
from heads.parallel import waited_for

LAYERS: Final = {"mixed_4f": "Mixed_4f", "avg_pool": "AvgPool", "max_pool_5a": "MaxPool_5a"}  # of each cut
_ROWS_A_STEP: Final = 8  # that a test looks at together


class Trunk(nn.Module):
    """Clips as they are stored into maps: crop, normalise, network up to a layer."""

    def __init__(
        self,
        shape: tuple[int, ...],
        network: Network | TrunkConfig,
        *,
        layer: str,
        crop_px: int | None,
        augment: str,
    ) -> None:
        super().__init__()
        fix = "give it a store of clips, or take away its network"
        if len(shape) != 4 or shape[-1] != 3:
            raise UserError("rows are no clips", where="network", expected="(T,H,W,3)", got=shape, fix=fix)
        if not isinstance(network, Network):
            network = built("network", network, library="framepool", num_classes=0, layer=layer, pool=False)
        self.network, self.augment = network, augment
        network.classifier = nn.Identity()
        self.height_px, self.width_px = shape[1:3]
        short_px = min(self.height_px, self.width_px)
        side_px = crop_px or min(network.input.size_px, short_px)
        # How an extractor must feed it from now on.
        ratio = min(1.0, side_px / short_px)
        network.input = replace(network.input, size_px=side_px, crop_ratio=ratio)
        self.rows = FromRows("rgb", network.input.mean, network.input.std)
        network.to(memory_format=torch.channels_last_3d)
        self.shape = self._settled((3, shape[0], side_px, side_px))

    def _settled(self, clip: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a map; parameters after the layer, which it does not depend on, are none that train."""
        check_input("network", self.network, *clip)
        trunk = self.network.trunk.eval()
        parameters = list(trunk.parameters())
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            maps = trunk(mode.from_tensor(torch.empty(1, *clip)))
            grads = torch.autograd.grad(maps.sum(), parameters, allow_unused=True)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.requires_grad_(grad is not None)
        trunk.train()
        return tuple(maps.shape[1:])

    def forward(self, clips: Tensor) -> Tensor:
        """(R,T,H,W,3) uint8 -> (R,C,T',H',W'). In training each row has a crop of its own."""
        images = self.rows(self._cropped(clips))
        maps: Tensor = self.network.trunk(images.contiguous(memory_format=torch.channels_last_3d))
        return maps

    def _cropped(self, clips: Tensor) -> Tensor:
        side_px, count = self.network.input.size_px, len(clips)
        if self.training and self.augment != "none":  # generator None: torch's own, which the training loop seeds
            mirror = self.augment == "crop_flip"
            boxes = jittered_boxes(count, self.height_px, self.width_px, mirror=mirror, generator=None)
        elif self.height_px == self.width_px == side_px:
            return clips
        elif torch.compiler.is_compiling():
            return crop_rows(clips, None, side_px, flow=False)
        else:
            boxes = centre_box(self.height_px, self.width_px, side_px).expand(count, 4)
        return crop_rows(clips, boxes.to(clips.device), side_px, flow=False)


class OfMaps(Head):
    """Rows, the trunk where there is one, `scores` of a map, consensus."""

    test_batch: ClassVar[int] = 8

    def __init__(
        self,
        shapes: Shapes,
        num_classes: int,
        *,
        kind: str,
        cut: str,
        consensus: str,
        network: Network | TrunkConfig | None,
        crop_px: int | None,
        augment: str,
    ) -> None:
        super().__init__(shapes, num_classes)
        (self.modality, shape), *others = shapes.items()
        self.consensus, self.trunk = consensus, None
        if network is not None and not others:
            self.trunk = Trunk(tuple(shape), network, layer=LAYERS[cut], crop_px=crop_px, augment=augment)
            shape = self.trunk.shape
        if others or len(shape) != 4:
            got = ", ".join(f"{m} {tuple(s)}" for m, s in shapes.items())
            fix = "read a trunk extractor of a layer with pool: false, or give it a network"
            raise UserError(f"{kind} reads one store of maps", expected="rows (C,T,H,W)", got=got, fix=fix)
        self.map = tuple(shape)  # (C,T,H,W)

    def scores(self, maps: Tensor) -> Tensor:
        """(R,C,T,H,W) -> (R,K)."""
        raise NotImplementedError

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,*S) -> (B,K): padded rows never reach the network, nor its batch norms."""
        rows, mask = features[self.modality], masks[self.modality]
        if torch.compiler.is_compiling() and not self.training:  # padding too: how many rows there are is not known
            return self._agreed(self._row_scores(rows.flatten(0, 1)).view(*mask.shape, -1), mask)
        there = rows[mask]  # (R,*S)
        steps = [there] if self.training else torch.split(there, _ROWS_A_STEP)
        scores = torch.zeros(*mask.shape, self.num_classes, device=rows.device)
        if len(there) or waited_for(self):
            scores = scores.index_put((mask,), torch.cat([self._row_scores(step) for step in steps]))
        return self._agreed(scores, mask)

    def _row_scores(self, rows: Tensor) -> Tensor:
        """(R,*S) -> (R,K) float32."""
        return self.scores(rows.float() if self.trunk is None else self.trunk(rows)).float()

    def _agreed(self, scores: Tensor, mask: Tensor) -> Tensor:
        """(B,L,K), (B,L) -> (B,K)."""
        if self.consensus == "max":
            some = mask.any(dim=1, keepdim=True)
            return torch.where(some, scores.masked_fill(~mask[..., None], -torch.inf).amax(dim=1), 0)
        if self.consensus == "logits" or self.training:
            return masked_mean(scores, mask)
        return log_mean_softmax(scores, mask)

    def extra_files(self) -> dict[str, bytes]:
        """The network alone where there is one, with the input that it was trained for."""
        return {} if self.trunk is None else {"network.safetensors": save_network(self.trunk.network)}
