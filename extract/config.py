"""Configs of stage one: what an extractor is made of. Everything here but the timeout is part of the recipe.

extractors:
  rgb:
    kind: rgb
    sampling: {kind: uniform, n: 25}
    network: {name: mobilenetv2_100, weights: weights/mobilenetv2.safetensors}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from features.recipe import Config


class Uniform(Config):
    """`n` frames at equal intervals: floor((j + 0.5) * F / n) of F frames; a shorter video gives each frame once."""

    kind: Literal["uniform"] = "uniform"
    n: PositiveInt = 25


class Every(Config):
    """Frames 0, k, 2k, ..."""

    kind: Literal["every"]
    k: PositiveInt = 1


class Fps(Config):
    """The frame on screen at 0, 1 / fps, 2 / fps, ... seconds by true time; no frame twice."""

    kind: Literal["fps"]
    fps: PositiveFloat


class Segments(Config):
    """TSN: the video in `n` equal segments, a snippet of `length` frames in the middle of each (Wang et al. 2016).

    With ``length > 1`` a row is a clip of that many frames.
    """

    kind: Literal["segments"]
    n: PositiveInt = 3
    length: PositiveInt = 1


class Clips(Config):
    """Clips of `frames` frames, `stride` apart, one starting every `hop` frames (default: no overlap).

    A last clip that is cut short is dropped unless it is the only one; then its frames repeat from the start.
    """

    kind: Literal["clips"]
    frames: PositiveInt = 16
    stride: PositiveInt = 1
    hop: PositiveInt | None = None


Sampling = Annotated[Uniform | Every | Fps | Segments | Clips, Field(discriminator="kind")]


class Transform(Config):
    """Short side to `resize` pixels, centre crop of `crop` pixels, values in [0, 1] less `mean` over `std`.

    What is left out comes with the network's weights.
    """

    resize: PositiveInt | None = None
    crop: PositiveInt | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[PositiveFloat, ...] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.resize and self.crop and self.crop > self.resize:
            raise ValueError(f"crop <= resize, that is crop <= {self.resize}")
        return self


class FromRun(Config):
    """Weights that a run of this dataset trained: the `network` of the head named `run`, first seed, same split."""

    run: str


class NetworkConfig(Config):
    """A classifier of timm or torchvision, by name. `options` go to the library's constructor.

    `weights` is a local file, ``DEFAULT`` (downloaded by the library), or ``{run: HEAD}``.
    """

    name: str
    library: Literal["timm", "torchvision"] = "timm"
    weights: Literal["DEFAULT"] | FromRun | Path
    options: dict[str, Any] = Field(default_factory=dict)


class Limits(Config):
    """What a video may ask for, checked before decoding; over it the outcome is `too_large` or `timeout`."""

    max_pixels: PositiveInt = 4096 * 2304
    max_frames: PositiveInt = 200_000
    max_duration_s: PositiveFloat = 4 * 3600.0
    min_decoded_ratio: float = Field(0.0, ge=0, le=1)  # below this share of the promised frames: undecodable
    timeout_s: PositiveFloat = 600.0  # not part of the recipe


class Pixels(Config):
    """Frames as they are, uint8 (H, W, 3) rows, for end-to-end models."""

    kind: Literal["pixels"]
    sampling: Sampling = Uniform()
    transform: Transform = Transform(resize=256, crop=224)
    limits: Limits = Limits()


class Rgb(Config):
    """Pooled features before the classifier of a frame CNN, float16 (D,) rows.

    `runtime` defaults by `device`: OpenVINO on a CPU, torch on CUDA. `batch` is the fixed shape that the network sees.
    """

    kind: Literal["rgb"]
    sampling: Sampling = Uniform()
    network: NetworkConfig
    transform: Transform = Transform()
    limits: Limits = Limits()
    device: Literal["cpu", "cuda"] = "cpu"
    runtime: Literal["openvino", "torch"] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    batch: PositiveInt = 4  # small enough for its activations to stay in cache

    @model_validator(mode="after")
    def _runtime_fits(self) -> Self:
        if self.device == "cuda" and self.runtime == "openvino":
            raise ValueError("runtime torch on device cuda")
        return self

    @property
    def chosen_runtime(self) -> Literal["openvino", "torch"]:
        """`runtime`, or the device's own."""
        return self.runtime or ("torch" if self.device == "cuda" else "openvino")


ExtractorConfig = Annotated[Pixels | Rgb, Field(discriminator="kind")]
NUMERICS = {"pixels": 1, "rgb": 1}  # bumped by hand when a change to the code changes the rows


def recipe(config: Pixels | Rgb, weights: str | None) -> dict[str, Any]:
    """Everything that can change the rows of `config`: its fields, the code's `NUMERICS`, and what names its `weights`.

    `weights`: the sha256 of a given file, the digest of the run that trains them, or ``DEFAULT``.
    """
    value = {**config.recipe(), "numerics": NUMERICS[config.kind]}
    del value["limits"]["timeout_s"]
    if isinstance(config, Rgb):
        value["runtime"] = config.chosen_runtime
        value["network"]["weights"] = weights
    return value
