"""Configs of stage one: what an extractor is made of: source -> sampling -> transform -> network -> rows.

The source is the video, or the store of another extractor. Everything here but the timeout and where rows are kept is
part of the recipe.

extractors:
  rgb:
    kind: rgb
    sampling: {kind: uniform, n: 25}
    network: {name: mobilenetv2_100, weights: weights/mobilenetv2.safetensors}
  tvl1: {kind: tvl1, sampling: {kind: segments, n: 25}, pairs: 5, temporary: true}
  flow: {kind: flow, source: tvl1, network: {name: mobilenetv2_100, weights: {run: tsn_flow}}}
  logmel: {kind: logmel}
  audio: {kind: audio, source: logmel, network: {name: vggish, library: framepool, weights: vggish.pth}}
  i3d: {kind: imported, path: output/i3d, key: rgb, origin: "I3D of Kinetics-400, by video_features"}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from extract.samplings import Clips, Sampling, Segments, Spread, Uniform, own_frames
from features.recipe import Config

View = Literal["left", "centre", "right", "left_mirrored", "centre_mirrored", "right_mirrored"]
CENTRE: Final[tuple[View, ...]] = ("centre",)
DECODING: Final = ("sampling", "limits", "decoder")  # which frames of a video there are; no concern of who has a source


class Transform(Config):
    """Short side to `resize` pixels, centre crop of `crop` pixels, values in [0, 1] less `mean` over `std`.

    What is left out comes with the network's weights. Each of the `views` of a sample is a row, one after the other:
    the middle or the part at either end of the long side (`left` is the top of a tall picture), as it is or mirrored.
    """

    resize: PositiveInt | None = None
    crop: PositiveInt | None = None
    views: tuple[View, ...] = Field(CENTRE, min_length=1)
    mean: tuple[float, ...] | None = None
    std: tuple[PositiveFloat, ...] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.resize and self.crop and self.crop > self.resize:
            raise ValueError(f"crop <= resize, that is crop <= {self.resize}")
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"each view once, not {', '.join(self.views)}")
        return self

    @model_validator(mode="after")
    def _colours_are_alike(self) -> Self:
        lengths = {len(value) for value in (self.mean, self.std) if value is not None}
        if len(lengths) > 1 or lengths - {1, 3}:
            raise ValueError("mean and std of equal length: one number each, or one for each of 3 colours")
        return self

    @model_serializer(mode="wrap")
    def _plain(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(serialise(self), "views", list(CENTRE))


class MapTransform(Transform):
    """Of rows that stay pictures: with `width` they are `crop` pixels high and `width` wide, which the crops of a
    training are taken from (TSN's 340x256). A picture that would not fill that is enlarged until it does: a tall one is
    seen nearer than by an extractor of squares."""

    width: PositiveInt | None = None

    @model_validator(mode="after")
    def _width_has_a_height(self) -> Self:
        if self.width is not None and self.crop is None:
            raise ValueError("crop, the height, beside width")
        return self

    @model_serializer(mode="wrap")
    def _plain(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(_without(serialise(self), "views", list(CENTRE)), "width", None)


class FromRun(Config):
    """Weights that a run trained: the `network` of the head named `run`, first seed, same split; of another dataset its
    first split."""

    run: str
    dataset: str | None = Field(None, description="the dataset whose head it is; null: this one")


class NetworkConfig(Config):
    """A network of timm, torchvision (2D and 3D) or our own (`framepool`: i3d, kft_trunk, c3d, r3d34, yamnet, vggish,
    vgg16_audio, flash_cnn), by name.

    `weights` is a local file, ``DEFAULT`` (downloaded by the library), or ``{run: HEAD}``. `options` go to the
    library's constructor. `layer` names a module whose output is wanted instead of the pooled features before the
    classifier, averaged over space and time, or with ``pool: false`` as the map that it is. With `inflate` the weights
    are of the 2D network that the 3D one was made of (GoogLeNet for i3d): kernels are repeated along time and divided
    by its length (``mean``), or put in its middle (``centre``).
    """

    name: str
    library: Literal["timm", "torchvision", "framepool"] = "timm"
    weights: Literal["DEFAULT"] | FromRun | Path
    options: dict[str, Any] = Field(default_factory=dict)
    layer: str | None = None
    pool: bool = True
    inflate: Literal["mean", "centre"] | None = None

    @model_validator(mode="after")
    def _a_map_has_a_layer(self) -> Self:
        if not self.pool and self.layer is None:
            raise ValueError("the name of a layer with pool: false")
        return self

    @model_serializer(mode="wrap")
    def _plain(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(serialise(self), "inflate", None)


def _without(value: dict[str, Any], option: str, default: Any) -> dict[str, Any]:
    """`value` less an option that came later and was left as it is, so that digests stay as they were."""
    if option in value and (list(value[option]) if isinstance(value[option], tuple) else value[option]) == default:
        del value[option]
    return value


class Limits(Config):
    """What a video may ask for, checked before decoding; over it the outcome is `too_large` or `timeout`."""

    max_pixels: PositiveInt = 4096 * 2304
    max_frames: PositiveInt = 200_000
    max_duration_s: PositiveFloat = 4 * 3600.0
    min_decoded_ratio: float = Field(0.0, ge=0, le=1)  # below this share of the promised frames: undecodable
    max_memory_mb: PositiveInt = 2048  # of a decoder process, above what it starts with
    timeout_s: PositiveFloat = 600.0  # of silence from a decoder; not part of the recipe


class Extractor(Config):
    """What all extractors share. `source` is another extractor, or null for the video itself.

    `temporary`: the workflow removes the rows once nothing reads them any more. ``store: false``: they are never kept
    but computed anew for each extractor that reads them.
    """

    reads: ClassVar[tuple[str, ...]] = ()  # kinds of extractors that can be its source
    source: None = None
    store: bool = True
    temporary: bool = False

    @model_validator(mode="after")
    def _kept_or_not(self) -> Self:
        if self.temporary and not self.store:
            raise ValueError("temporary: true or store: false, not both")
        return self


class FromVideo(Extractor):
    """An extractor that decodes the pictures of a video, with ``decoder: cuda`` on the GPU where it knows the codec.

    Its decoders have no limit of memory then: the driver reserves more addresses than that.
    """

    sampling: Sampling = Uniform()
    transform: Transform = Transform()
    limits: Limits = Limits()
    decoder: Literal["software", "cuda"] = "software"


class Pixels(FromVideo):
    """Frames as they are, uint8 (H, W, 3) rows, or clips (T, H, W, 3), for end-to-end models."""

    kind: Literal["pixels"]
    transform: MapTransform = MapTransform(resize=256, crop=224)


class Tvl1(FromVideo):
    """Dense optical flow of grey frames, uint8 (H, W, 2 * pairs) rows: x1, y1, x2, y2, ... between frames `step` apart.

    A row starts at a sampled frame; 0 and 255 stand for -bound_px and +bound_px. TV-L1 of ours or of OpenCV, or DIS or
    Farneback of OpenCV.
    """

    kind: Literal["tvl1"]
    sampling: Sampling = Segments(n=25)
    transform: MapTransform = MapTransform(resize=256, crop=224)
    pairs: PositiveInt = 5
    step: PositiveInt = 1
    bound_px: PositiveFloat = 20.0
    backend: Literal["framepool", "opencv", "dis", "farneback"] = "framepool"
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _samples_are_starts(self) -> Self:
        _no_clips(self.sampling)
        if self.device == "cuda" and self.backend != "framepool":
            raise ValueError("backend framepool on device cuda")
        return self


class Logmel(Extractor):
    """Log-mel patches of the sound, float32 (96, 64) rows, as VGGish takes them; YAMNet was trained with offset 0.001.

    A patch covers 0.975 s; the next one starts `hop_s` later.
    """

    kind: Literal["logmel"]
    hop_s: float = Field(0.96, ge=0.01, multiple_of=0.01)
    offset: PositiveFloat = 0.01
    limits: Limits = Limits()


class Frames(Extractor):
    """Frames of a dataset whose videos are made as they are read: uint8 (H, W, C) rows, all of them."""

    kind: Literal["frames"]


class Imported(Extractor):
    """Rows that others made: a folder of .npy files, an HDF5 file, or WebDataset's tars (`features.foreign`).

    Rows have the times that come with them; else they are `every_s` apart (null: by their ``_fps.npy``, or 1 s). What
    they are of can be said in `origin`: the recipe keeps it.
    """

    kind: Literal["imported"]
    path: Path
    layout: Literal["npy", "hdf5", "webdataset"] | None = None  # null: by the name of `path`
    key: str | None = Field(None, min_length=1, pattern=r"^[^/\x00]+$")  # which of a video's features: rgb, vggish, ...
    every_s: PositiveFloat | None = None
    dtype: Literal["float16", "float32", "uint8"] = "float16"
    origin: str = ""


class Networked(Extractor):
    """An extractor whose rows come out of a network, float16.

    `runtime` defaults by `device`: OpenVINO on a CPU, torch on CUDA. `batch` is the fixed shape that the network sees.
    bf16 is fp32 on a processor without it; which of the two is a fact of the store, whose shards agree in it. int8 is
    OpenVINO's, calibrated on `calibration` of the dataset's own videos.
    """

    network: NetworkConfig
    device: Literal["cpu", "cuda"] = "cpu"
    runtime: Literal["openvino", "torch"] | None = None
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    batch: PositiveInt = 4  # small enough for its activations to stay in cache
    calibration: PositiveInt = 64  # videos, for int8

    @model_validator(mode="after")
    def _runtime_fits(self) -> Self:
        if self.device == "cuda" and self.runtime == "openvino":
            raise ValueError("runtime torch on device cuda")
        if self.precision == "int8" and self.chosen_runtime != "openvino":
            raise ValueError("runtime openvino with precision int8")
        return self

    @property
    def chosen_runtime(self) -> Literal["openvino", "torch"]:
        """`runtime`, or the device's own."""
        return self.runtime or ("torch" if self.device == "cuda" else "openvino")


class Pictured(FromVideo, Networked):
    """A network on pictures: of the video, or of a `pixels` or `frames` store, whose sampling and limits it follows."""

    reads: ClassVar[tuple[str, ...]] = ("pixels", "frames")
    source: str | None = None  # type: ignore[assignment]

    @model_validator(mode="after")
    def _its_source_samples(self) -> Self:
        own = {*DECODING} & self.model_fields_set
        if self.source is not None and own:
            raise ValueError(f"no {min(own)} beside a source, whose own counts")
        if self.source is not None and self.transform.resize is not None:
            raise ValueError("no transform.resize beside a source: its maps are as they are")
        if self.source is not None and self.transform.views != CENTRE:
            raise ValueError("no transform.views beside a source: its maps are as they are")
        return self


class Rgb(Pictured):
    """Features of a frame CNN, float16 (D,) rows, or the map of a named layer."""

    kind: Literal["rgb"]

    @model_validator(mode="after")
    def _one_frame(self) -> Self:
        _no_clips(self.sampling)
        return self


class RgbDiff(Pictured):
    """A CNN on stacked differences of frames `step` apart (TSN, Wang et al. 2016): 3 * pairs channels."""

    kind: Literal["rgbdiff"]
    sampling: Sampling = Segments(n=25)
    pairs: PositiveInt = 5
    step: PositiveInt = 1

    @model_validator(mode="after")
    def _samples_are_starts(self) -> Self:
        _no_clips(self.sampling)
        own = {"pairs", "step"} & self.model_fields_set
        if self.source is not None and own:
            raise ValueError(f"no {min(own)} beside a source, whose clips have a length")
        return self


class Trunk(Pictured):
    """A 3D network on clips: pooled features, or the activation map of a named layer."""

    kind: Literal["trunk"]
    sampling: Sampling = Clips()

    @model_validator(mode="after")
    def _clips(self) -> Self:
        if self.source is None and own_frames(self.sampling) == 1:
            raise ValueError("sampling of clips, such as {kind: clips, frames: 16}")
        return self


class Mapped(Networked):
    """A network on the maps of a store."""

    source: str  # type: ignore[assignment]


class Flow(Mapped):
    """A CNN on stacks of optical flow, the rows of a `tvl1` store, centre-cropped to `crop`."""

    reads: ClassVar[tuple[str, ...]] = ("tvl1",)
    kind: Literal["flow"]
    crop: PositiveInt | None = None  # null: as the network's weights want it


class Audio(Mapped):
    """A CNN on the patches of a `logmel` store."""

    reads: ClassVar[tuple[str, ...]] = ("logmel",)
    kind: Literal["audio"]


AnyExtractor = Pixels | Tvl1 | Logmel | Frames | Imported | Rgb | RgbDiff | Trunk | Flow | Audio
ExtractorConfig = Annotated[AnyExtractor, Field(discriminator="kind")]
# Bumped by hand when a change to the code changes the rows, of one kind or of all that decode files.
DECODED: Final = 1
NUMERICS: Final = {
    **dict.fromkeys(("pixels", "trunk"), 3),
    **dict.fromkeys(("rgb", "imported", "logmel"), 2),
    **dict.fromkeys(("tvl1", "frames", "rgbdiff", "flow", "audio"), 1),
}


def snippet(config: FromVideo) -> tuple[int, int]:
    """(frames, stride) of a row: a stack of pairs is one frame longer than the stack."""
    if isinstance(config, Tvl1 | RgbDiff):
        return config.pairs + 1, config.step
    if isinstance(config.sampling, Clips | Spread):
        return config.sampling.frames, config.sampling.stride
    return own_frames(config.sampling), 1


def recipe(
    config: Extractor, weights: str | None = None, source: str | None = None, generator: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that can change the rows of `config`: its fields, the code's `NUMERICS`, and what names its `weights`,
    its `source` and the `generator` of its frames.

    `weights`: the sha256 of a given file, the digest of the run that trains them, or ``DEFAULT``. `source`: the digest
    of the recipe of the extractor that it reads.
    """
    viewed = isinstance(config, FromVideo) and isinstance(config.sampling, Spread) and len(config.transform.views) > 1
    decoded = DECODED if source is None and isinstance(config, FromVideo | Logmel) else 0
    numerics = NUMERICS[config.kind] + viewed + decoded  # type: ignore[attr-defined]
    value = {**config.recipe(), "numerics": numerics, "source": source}
    for field in ("store", "temporary"):
        del value[field]
    if source is not None:
        for field in DECODING:
            value.pop(field, None)
    if "limits" in value:
        del value["limits"]["timeout_s"]
    if generator is not None:
        value["generator"] = generator
    if isinstance(config, Networked):
        value["runtime"] = config.chosen_runtime
        value["network"]["weights"] = weights
        if config.precision != "int8":
            del value["calibration"]
    return value


def _no_clips(sampling: Sampling) -> None:
    if own_frames(sampling) > 1 or isinstance(sampling, Clips | Spread):
        raise ValueError("sampling of single frames (uniform, every, fps, or segments of length 1)")
