"""The configs of heads on maps of clips: KFT, and the tail of I3D. No torch here: the Snakefile parses them.

heads:
  kft: {kind: kft, features: [maps], dims: 3d, layers: [6, 6, 6], train: {epochs: 20}}
  whole: {kind: kft, features: [clips], network: {weights: googlenet.pth, inflate: mean}}
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from features.recipe import Config
from heads.config import BaseConfig, Cosine, RunWeights, Sample, Schedule, Share, TrainConfig


class KftTrain(TrainConfig):
    """KFT (2020), §4: SGD at 0.01 with momentum 0.9, batches of 32, half a cosine; decay and epochs are not told."""

    epochs: PositiveInt = 40
    batch: PositiveInt = 32
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "sgd"
    lr: PositiveFloat = 1e-2
    momentum: Share = 0.9
    weight_decay: NonNegativeFloat = 1e-4
    schedule: Schedule = Cosine()


class TrunkConfig(Config):
    """A 3D network in front of a head on maps: one of ours that has the cuts of KFT."""

    name: Literal["kft_trunk", "i3d"] = "kft_trunk"
    weights: str | RunWeights | None = Field(
        None,
        description="null: random; {run: HEAD}: of that tsn; DEFAULT, with inflate: torchvision's; else a file",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="of the network: padding, pool_px, mixed_kt")
    inflate: Literal["mean", "centre"] | None = Field(
        None, description="the weights are of the 2D network that this one was made of; see extract/networks/inflate.py"
    )


class MapsConfig(BaseConfig):
    """Heads on maps of clips, cached or behind a network: what `heads.maps` says."""

    cut: Literal["mixed_4f", "avg_pool", "max_pool_5a"] = Field(
        "avg_pool", description="what rows are the maps of; with a network, where the head takes over from it"
    )
    mixed_kt: Literal[3, 1] = Field(3, description="frames of the 3x3 kernels in the head's own Inception blocks")
    dropout: Share = Field(0.5, description="before the classifier")
    consensus: Literal["softmax", "logits", "max"] = Field(
        "softmax", description="how the rows of a video agree; max for videos with several labels"
    )
    network: TrunkConfig | None = Field(None, description="makes the maps of clips, and trains with the head")
    crop_px: PositiveInt | None = Field(
        None, description="side of the network's input; null: as its weights want it, or the clips' short side if less"
    )
    augment: Literal["none", "crop", "crop_flip"] = Field(
        "crop_flip", description="of clips: squares of 70 to 87.5 % of the short side anywhere, and mirroring"
    )
    missing: Literal["mean", "none"] = "none"
    sample: Sample | dict[str, Sample] = Sample(train=1)
    train: KftTrain = KftTrain()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.missing != "none":
            raise ValueError("missing: none, as the mean of maps is no map")
        if self.codes is not None and self.consensus == "softmax":
            raise ValueError("consensus: logits or max with codes, as parts of a class have no softmax among them")
        for option in ("crop_px", "augment"):
            if self.network is None and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"no {option} without a network: cached maps are as they are")
        return self

    def options(self) -> dict[str, Any]:
        return {name: value for name, value in super().options().items() if name != "network"}


class I3dConfig(MapsConfig):
    """What I3D (CVPR 2017) has after Mixed_4f, in KFT's recipe."""

    kind: Literal["i3d"] = "i3d"


class KftConfig(MapsConfig):
    """Knowledge Fusion Transformers (2020)."""

    kind: Literal["kft"] = "kft"
    dims: Literal["3d", "2d", "1d"] = "3d"
    heads: tuple[PositiveInt, ...] = Field((), description="of each block; none: 2, 4, 4, of a single block 2")
    layers: tuple[PositiveInt, ...] = Field((), description="of each block; none: 2, 4, 6, of a single block 2")
    ffn: PositiveInt = Field(1, description="the linear layers inside are so many times as wide as the block")
    inside: Share = Field(0.1, description="dropout in the blocks")
    ffn_start: Literal["kaiming", "constant"] = Field("kaiming", description="how the linear layers inside begin")
    positions: Literal["sinusoid", "learned", "none"] = "sinusoid"
    residual: Literal["add", "concat", "none"] = Field("add", description="around a block")
    lateral: bool = Field(True, description="3d: what leaves a block is added to what enters the next")
    width: PositiveInt = Field(1024, multiple_of=64, description="3d: of Mixed_5b, Mixed_5c and blocks 2 and 3")
    hidden: PositiveInt = Field(832, description="2d, 1d: of the first of two linear layers")
    pool_px: PositiveInt = Field(7, description="cut mixed_4f: side of the average pooling; 1 for none")

    @model_validator(mode="before")
    @classmethod
    def _a_number_for_each_block(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        first = 0 if value.get("cut") != "max_pool_5a" else 1
        blocks = slice(first, 3) if value.get("dims", "3d") == "3d" else slice(0, 1)
        defaults = {"heads": (2, 4, 4)[blocks], "layers": (2, 4, 6)[blocks]}
        return {**value, **{k: d for k, d in defaults.items() if not value.get(k)}}

    @model_validator(mode="after")
    def _used(self) -> Self:
        blocks = 1 if self.dims != "3d" else 2 if self.cut == "max_pool_5a" else 3
        if len(self.heads) != blocks or len(self.layers) != blocks:
            raise ValueError(f"{blocks} heads and {blocks} layers, one a block, not {self.heads} and {self.layers}")
        unused = ["lateral", "width", "mixed_kt"] if self.dims != "3d" else ["hidden"]
        for option in [*unused, *([] if self.cut == "mixed_4f" else ["pool_px"])]:
            if getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"no {option} with dims {self.dims} and cut {self.cut}")
        return self
