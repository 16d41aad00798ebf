"""An end-to-end model: a CNN looks at each frame of a clip, a head of vectors at what it saw. The two train as one.

Any head of vectors has an `encoder` as an option; nothing else is special about it:

    vtn with a ResNet-34        VTN, "Lightweight Network Architecture for Real-Time Action Recognition" (Kozlov et al.,
                                2019), §3; its 1x1 convolution before the pooling is the head's `embed` after it, which
                                gives the same numbers, as both are linear
    stacked_lstm                that paper's recurrent baseline
    average, dropout 0          a classifier at each frame, the mean of its logits

`reads` is what the CNN sees of a clip of T frames: each of them (rgb), the differences of neighbours (rgbdiff: T - 1 of
them), the frame above its difference from the one before, zero for the first (stacked), or optical flow. Differences
are of normalised frames. Rows are clips (T,H,W,C), as `sampling: {kind: clips}` stores them, or single frames (H,W,C),
of which `frames` that follow one another are a clip. A video's score is the mean over its clips.

Crops are drawn by `augmented`, which the training loop calls before the step, so that a teacher sees the same clip.
Legend: B videos, L rows, S clips of a video, R clips in all, T frames, H W C map, D dims, K classes.

    head = heads.build("vtn", {"pixels": (16, 256, 256, 3)}, num_classes=400, network={"name": "resnet34"})
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Final, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from extract.networks import FromRows, Network, save_network
from features.batches import Select
from features.errors import UserError
from heads.augment import MOTION_SCALES, SCALES, centre_box, crop_rows, random_boxes
from heads.base import Head, Shapes, log_mean_softmax, masked_mean
from heads.cnns import built, check_input
from heads.config import EncoderConfig
from heads.parallel import waited_for
from heads.windows import even_windows, random_windows

_FRAMES_A_STEP: Final = 64  # that a test puts through the CNN at once


class Encoder(nn.Module):
    """Clips as they are stored, and which of their frames are there, into a vector a frame."""

    def __init__(self, shapes: Shapes, config: EncoderConfig, network: Network | None = None) -> None:
        """`network`, of the channels that it reads, is taken in the place of the one that `config` names."""
        super().__init__()
        self.shapes, self.config = dict(shapes), config
        (self.modality, shape), *_ = shapes.items()
        self.clips = len(shape) == 4  # rows are clips
        _check(config, self.modality, tuple(shape))
        colours = shape[-1] if config.reads == "flow" else 3  # grey frames become grey pictures
        in_chans = 2 * colours if config.reads == "stacked" else colours
        if network is None:
            network = built("encoder", config, num_classes=0, in_chans=in_chans, reads=config.reads)
        self.network = network
        self.network.classifier = nn.Identity()
        side_px, short_px = config.crop_px or self.network.input.size_px, min(shape[-3:-1])
        # how an extractor must feed it from now on
        self.network.input = replace(self.network.input, size_px=side_px, crop_ratio=min(1.0, side_px / short_px))
        self.rows = FromRows(
            "flow" if config.reads == "flow" else "rgb", self.network.input.mean, self.network.input.std
        )
        check_input("encoder", self.network, in_chans, side_px, side_px)
        self.network.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Self:
        """As always; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.config.frozen_bn:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    @property
    def dim(self) -> int:
        """D."""
        return self.network.feature_dim

    @property
    def size_px(self) -> int:
        """The side of what the CNN sees."""
        return self.network.input.size_px

    def cropped(self, clips: Tensor, *, random: bool) -> Tensor:
        """(R,T,H,W,C) -> (R,T,size,size,C): the middle, or a crop for each clip from torch's own generator."""
        height_px, width_px = clips.shape[-3:-1]
        if random:
            mirror = self.config.augment == "crop_flip"
            scales = MOTION_SCALES if self.config.reads == "flow" else SCALES  # VTN's; TSN crops differences less far
            boxes = random_boxes(len(clips), height_px, width_px, mirror=mirror, generator=None, scales=scales)
        elif height_px == width_px == self.size_px:
            return clips
        elif torch.compiler.is_compiling():
            return crop_rows(clips, None, self.size_px, flow=False)
        else:
            boxes = centre_box(height_px, width_px, self.size_px).expand(len(clips), 4)
        return crop_rows(clips, boxes.to(clips.device), self.size_px, flow=self.config.reads == "flow")

    def images(self, clips: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """(R,T,size,size,C), (R,T) -> what the CNN sees (R,T',C',size,size) float32, and which of it is there."""
        frames = self.rows(clips.flatten(0, 1))
        frames = frames.reshape(*clips.shape[:2], *frames.shape[1:])
        if self.config.reads in ("rgb", "flow"):
            return frames, there
        both = there[:, 1:] & there[:, :-1]
        changes = frames[:, 1:] - frames[:, :-1]
        if self.config.reads == "rgbdiff":
            return changes, both
        changes = torch.where(both[..., None, None, None], changes, 0)
        return torch.cat([frames, torch.cat([torch.zeros_like(frames[:, :1]), changes], dim=1)], dim=2), there

    def forward(self, clips: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """(R,T,H,W,C) uint8 or float, (R,T) -> (R,T',D) float32, (R,T'); frames that are not there never reach the CNN,
        nor its batch norms."""
        images, there = self.images(self.cropped(clips, random=False), there)
        if torch.compiler.is_compiling():  # which frames are there is not known yet
            return self.network.trunk(images.flatten(0, 1)).float().reshape(*there.shape, self.dim), there
        vectors = torch.zeros(*there.shape, self.dim, device=clips.device)
        if not bool(there.any()) and not waited_for(self.network):
            return vectors, there
        found = self.network.trunk(images[there].contiguous(memory_format=torch.channels_last)).float()
        return vectors.index_put(there.nonzero(as_tuple=True), found), there


class EndToEnd(Head):
    """crop, normalise, CNN on each frame, head, mean over clips."""

    test_batch: ClassVar[int] = 8

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__(encoder.shapes, head.num_classes)
        self.encoder, self.head = encoder, head
        self.rows_together = 1 if encoder.clips else encoder.config.frames

    def train_rows(self, n: int | None, generator: torch.Generator) -> Select:
        """`n` random clips of a video; of single frames as many windows."""
        if self.encoder.clips:
            return super().train_rows(n, generator)
        return random_windows(1 if n is None else n, self.encoder.config.frames, generator)

    def test_rows(self, n: int | None) -> Select:
        """All clips of a video that do not overlap, or `n`."""
        return super().test_rows(n) if self.encoder.clips else even_windows(n, self.encoder.config.frames)

    def augmented(
        self, features: dict[str, Tensor], masks: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The same batch, each clip cropped at random to what the CNN sees."""
        if self.encoder.config.augment == "none":
            return features, masks
        modality = self.encoder.modality
        clips, there = self._clips(features[modality], masks[modality])
        cropped = self.encoder.cropped(clips.flatten(0, 1), random=True)  # (B*S,T,size,size,C)
        if self.encoder.clips:
            return {modality: cropped.reshape(*clips.shape[:2], *cropped.shape[1:])}, masks
        return {modality: cropped.reshape(len(clips), -1, *cropped.shape[2:])}, {modality: there.flatten(1, 2)}

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,*S) -> (B,K)."""
        modality = self.encoder.modality
        clips, there = self._clips(features[modality], masks[modality])
        pairs, whole = (clips.flatten(0, 1), there.flatten(0, 1)), there.any(dim=2)  # (B,S)
        if torch.compiler.is_compiling():
            scores = self._scores(*pairs)
        elif self.training:
            scores = self._scores_of(whole.flatten(), *pairs)
        else:
            at_once = max(1, _FRAMES_A_STEP // clips.shape[2])
            steps = zip(*(torch.split(part, at_once) for part in pairs), strict=True)
            scores = torch.cat([self._scores(*step) for step in steps])
        scores = scores.reshape(*clips.shape[:2], -1)  # (B,S,K)
        if self.encoder.config.of == "logits":
            return masked_mean(scores, whole)
        return log_mean_softmax(scores, whole)

    def _clips(self, rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B,L,*S), (B,L) -> (B,S,T,H,W,C), (B,S,T)."""
        if self.encoder.clips:
            return rows, mask[..., None].expand(*mask.shape, rows.shape[2])
        frames = self.encoder.config.frames
        lacking = -rows.shape[1] % frames
        if lacking:
            rows = torch.cat([rows, rows.new_zeros(len(rows), lacking, *rows.shape[2:])], dim=1)
            mask = nn.functional.pad(mask, (0, lacking))
        clips = rows.shape[1] // frames  # shapes, not lengths and -1: an exported graph has them free
        split = rows.reshape(rows.shape[0], clips, frames, *rows.shape[2:])
        return split, mask.reshape(mask.shape[0], clips, frames)

    def _scores_of(self, whole: Tensor, clips: Tensor, there: Tensor) -> Tensor:
        """(R,), (R,T,H,W,C), (R,T) -> (R,K): those that are not `whole` never reach the head, nor its batch norms."""
        nothing = torch.zeros(len(whole), self.head.num_classes, device=clips.device)
        scores = self.head.of_classes(nothing).float()
        if not bool(whole.any()):
            whole = torch.full_like(whole, waited_for(self))  # others wait for the call
        if bool(whole.any()):
            scores = scores.index_put((whole,), self._scores(clips[whole], there[whole]))
        return scores

    def _scores(self, clips: Tensor, there: Tensor) -> Tensor:
        """(R,T,H,W,C), (R,T) -> (R,K)."""
        vectors, seen = self.encoder(clips, there)
        scores: Tensor = self.head({self.encoder.modality: vectors}, {self.encoder.modality: seen})
        return scores.float()

    def lr_factors(self) -> dict[str, float]:
        """The head's own."""
        return {f"head.{name}": factor for name, factor in self.head.lr_factors().items()}

    def extra_files(self) -> dict[str, bytes]:
        """The CNN alone, with the input that it was trained for."""
        return {"network.safetensors": save_network(self.encoder.network)}


def _check(config: EncoderConfig, modality: str, shape: tuple[int, ...]) -> None:
    """Refuse rows that are of another kind than what the encoder reads."""
    fits = len(shape) in (3, 4) and (shape[-1] % 2 == 0 if config.reads == "flow" else shape[-1] in (1, 3))
    kind = "2l" if config.reads == "flow" else "3"
    if not fits:
        expected = f"rows (H,W,{kind}), or clips (T,H,W,{kind})"
        fix = "give it a store of frames or clips, and set encoder.reads to what they are"
        where = f"encoder.reads: {config.reads}"
        raise UserError(
            "rows do not fit the encoder", where=where, expected=expected, got=f"{modality} {shape}", fix=fix
        )
    frames = shape[0] if len(shape) == 4 else config.frames
    if config.reads == "rgbdiff" and frames < 2:
        raise UserError("differences take two frames", where=f"encoder of {modality}", expected="2 or more", got=frames)
