"""What a network reads: the size of its input, how values are normalised, and what rows they are made of.

InputSpec(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875).shape(3)       # (3, 224, 224)

Shapes: C channels, T frames, H W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from extract.networks.rows import Reads

PATCH = (96, 64)  # a log-mel patch: frames of 10 ms, mel bands


@dataclass(frozen=True)
class InputSpec:
    """What the weights were trained to see: square crops of `size_px` out of a short side of ``size_px / crop_ratio``,
    values in [0, 1] less `mean` over `std`; clips of `frames` frames where that is more than 1.

    `reads` says what the channels are made of; see `extract.networks.rows`. Log-mel patches have no pixels: they are
    96 x 64 as they come, whatever `size_px` says.
    """

    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_ratio: float
    frames: int = 1
    reads: Reads = "rgb"

    @classmethod
    def of(cls, notes: Mapping[str, Any]) -> Self:
        """From its JSON; a file that was written before a field was there has the field's default."""
        fields: dict[str, Any] = {**notes, "mean": tuple(notes["mean"]), "std": tuple(notes["std"])}
        return cls(**fields)

    @property
    def resize_px(self) -> int:
        """The short side before the crop."""
        return round(self.size_px / self.crop_ratio)

    def shape(self, in_chans: int) -> tuple[int, ...]:
        """One input of `in_chans` channels: (C, H, W), of clips (C, T, H, W)."""
        if self.reads == "logmel":
            return in_chans, *PATCH
        return in_chans, *((self.frames,) if self.frames > 1 else ()), self.size_px, self.size_px
