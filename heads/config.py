"""What the configs of all heads share, and how heads are trained. No torch here: the Snakefile parses them.

Each head has one config in `heads.kinds`, told apart by `kind`; its own fields are the options that `heads.build`
passes on. `train` carries the defaults of the paper that the head is from.

    heads:
      mine: {kind: attention_cluster, features: [rgb], clusters: 64, sample: {train: 15, test: 25}, train: {epochs: 30}}
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from features.errors import UserError
from features.recipe import Config

NAME: Final = re.compile(r"[a-z0-9_]+")  # of an extractor, and so of features; files are named after it
GRAPHS: Final = ("head", "clip")  # what an export calls the graphs that are no modality's

Share = Annotated[float, Field(ge=0, lt=1)]
# what is no option of the head's own
_COMMON: Final = frozenset(
    {"kind", "features", "sample", "align", "missing", "codes", "clips", "encoder", "start", "distil", "train"}
)
EMPTY: Final = "none"  # the class that has no part
_OPTIMIZER_OPTIONS: Final = {
    "momentum": ("sgd", "rmsprop"),
    "alpha": ("rmsprop",),
    "betas": ("adam", "adamw"),
    "eps": ("rmsprop", "adam", "adamw"),
}


class Constant(Config):
    """The learning rate stays."""

    kind: Literal["constant"] = "constant"


class Step(Config):
    """The learning rate is multiplied by `factor` after each of the epochs `at`."""

    kind: Literal["step"] = "step"
    at: tuple[PositiveInt, ...] = Field(min_length=1)
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1


class Cosine(Config):
    """Half a cosine from the full learning rate, in the first epoch, towards zero after the last."""

    kind: Literal["cosine"] = "cosine"


class Plateau(Config):
    """Multiplied by `factor` when the watched loss has not fallen for `patience` epochs (see `hold_out`)."""

    kind: Literal["plateau"] = "plateau"
    patience: PositiveInt = 10
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1


Schedule = Annotated[Constant | Step | Cosine | Plateau, Field(discriminator="kind")]


class TrainConfig(Config):
    """How a head is trained. The seed comes from outside, so that one config has several seeds."""

    unrecorded: ClassVar[frozenset[str]] = frozenset({"recompute"})  # leaves every number as it is

    epochs: PositiveInt = 30
    batch: PositiveInt = Field(128, description="videos a step, at most: an epoch is cut into equal batches")
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    momentum: Share = Field(0.0, description="sgd, rmsprop")
    alpha: Share = Field(0.9, description="rmsprop: decay of the mean square")
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="adam, adamw")
    eps: PositiveFloat = Field(1e-8, description="rmsprop, adam, adamw")
    schedule: Schedule = Constant()
    clip: PositiveFloat | None = Field(None, description="largest L2 norm of all gradients together")
    clip_value: PositiveFloat | None = Field(None, description="largest size of any one gradient")
    balanced: bool = Field(
        False, description="each class weighs the same: a sample of class k weighs n_total / (K * n_k)"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="of a training step, but for what `heads.sparse` computes; fp32 on a processor without bf16; tests "
        "are always fp32",
    )
    accumulate: PositiveInt | None = Field(
        None,
        description="a step's batch goes through the head in so many parts, whose gradients add up: the memory of one. "
        "Batch norms then see a part at a time",
    )
    recompute: bool = Field(
        False,
        description="blocks of layers forget what is inside of them and compute it again on the way back: less memory, "
        "about a third more time, the same numbers",
    )
    clip_s: PositiveFloat | None = Field(
        None,
        description="for lists whose labels have times: a training sample is labelled with what happens from its first "
        "to its last row, each of which covers so many seconds; null: with all that happens in the video. "
        "The files' times must begin at 0, as the labels' do",
    )
    early_stop: PositiveInt | None = Field(
        None,
        description="stop after so many epochs without a lower watched loss, and keep the weights of the best epoch",
    )
    hold_out: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0,
        description="share of each class's training videos to watch, not train on, in whole groups where the list "
        "knows them; 0: watch the training loss",
    )
    stop_at_peak: PositiveInt | None = Field(
        None,
        description="stop after so many tests without a better one; the last weights stay. For tables that print the "
        "best epoch of the test, as Flash-MNIST's",
    )
    test_every: PositiveInt = Field(
        1, description="epochs between tests for the history; the last epoch is always tested"
    )

    @model_validator(mode="after")
    def _options_belong_to_the_optimizer(self) -> Self:
        for option, optimizers in _OPTIMIZER_OPTIONS.items():
            changed = getattr(self, option) != type(self).model_fields[option].default
            if changed and self.optimizer not in optimizers:
                raise ValueError(
                    f"no {option} with the optimizer {self.optimizer} (it belongs to {', '.join(optimizers)})"
                )
        return self


class Sample(Config):
    """Rows of a video that a head sees: n, or all (null). Training draws them, testing takes equal intervals."""

    train: PositiveInt | None = None
    test: PositiveInt | None = None


class Clips(Config):
    """A video's test rows in `n` clips, each scored by itself: its score is the largest, or the mean, of theirs."""

    n: PositiveInt = 10
    of: Literal["max", "mean"] = "max"


class RunWeights(Config):
    """Weights that another head of the dataset has trained, on the same split with the first seed."""

    run: str = Field(min_length=1, description="the head")


class EncoderConfig(Config):
    """A CNN that looks at every frame before the head does: the two are one model, trained end to end."""

    name: str = Field(min_length=1)
    library: Literal["timm", "torchvision"] = "timm"
    reads: Literal["rgb", "rgbdiff", "stacked", "flow"] = Field(
        "rgb",
        description="what it sees of a clip: its frames; the differences of neighbours; both, one over the other; or, "
        "of a tvl1 store, flow",
    )
    weights: str | RunWeights | None = Field(
        None,
        description="null: random; DEFAULT: the library's own; {run: HEAD}: what that tsn trained; else a file",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the library")
    frames: PositiveInt = Field(16, description="of a clip, where rows are single frames: as many that follow another")
    crop_px: PositiveInt | None = Field(None, description="side of the CNN's input; null: as its weights want it")
    augment: Literal["none", "crop", "crop_flip"] = Field(
        "crop_flip", description="TSN's multi-scale crop, and mirroring, alike in all frames of a clip"
    )
    frozen_bn: bool = Field(
        False,
        description="batch norms keep the statistics that they came with, while their factors learn; for weights whose "
        "norms were folded into the convolutions, and for small batches",
    )
    of: Literal["logits", "softmax"] = Field("logits", description="what is averaged over the clips of a video")


class Start(Config):
    """A finished run whose weights a training begins with: that of the head `run`, of the same split, and of the same
    seed where it has it; of another dataset its first split. Where its classes are others, the classifier is fresh."""

    run: str
    dataset: str | None = Field(None, description="the dataset whose head it is; null: this one")


class Distil(Config):
    """Knowledge distillation (Hinton et al., 2015) as in the authors' code of VTN (2019): to the loss comes ``weight *
    temperature^2 * KL(teacher || student)``, both softened by the temperature."""

    teacher: tuple[str, ...] | dict[str, PositiveFloat] = Field(
        min_length=1,
        description="heads of the config that read what this one reads; their mean logits, by weight",
    )
    temperature: PositiveFloat = 8.0
    weight: PositiveFloat = 0.4

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each teacher, not yet scaled to a sum of 1."""
        return dict(self.teacher) if isinstance(self.teacher, dict) else dict.fromkeys(self.teacher, 1.0)


def _used(config: Config, value: dict[str, Any]) -> dict[str, Any]:
    """The dumped `value` of `config` without the options that are null by default and were left so, and those that
    change no number."""
    found: dict[str, Any] = {}
    unrecorded: frozenset[str] = getattr(config, "unrecorded", frozenset())
    for name, field in type(config).model_fields.items():
        own = getattr(config, name)
        if (own is None and field.default is None) or name in unrecorded:
            continue
        found[name] = _used(own, value[name]) if isinstance(own, Config) else value[name]
    return found


class BaseConfig(Config):
    """What all heads share."""

    chance: ClassVar[bool] = True  # whether another seed gives another head

    kind: str
    features: tuple[str, ...] = Field(description="names of the extractors whose rows it reads")
    sample: Sample | dict[str, Sample] = Field(
        Sample(), description="for all modalities, or by modality; with align, of that modality alone"
    )
    align: str | None = Field(
        None,
        description="a modality whose sampled rows the others follow: of each of them the row that is nearest in time",
    )
    missing: Literal["mean", "none"] = Field(
        "mean",
        description="what stands for a modality that a video lacks: the mean row of the training videos, or nothing",
    )

    codes: str | None = Field(
        None,
        min_length=1,
        description="the sign that class names are cut at, as 0+3+7 at +: the head learns the parts, and a class is "
        "the set of its parts (none: the empty one)",
    )
    clips: Clips | None = Field(None, description="how a video is tested; null: all its test rows in one go")
    encoder: EncoderConfig | None = Field(
        None,
        description="a CNN before a head of vectors, whose rows are then frames or clips; `sample` counts clips: one "
        "of them in training, all in testing unless it says otherwise",
    )
    start: Start | None = Field(None, description="fine-tuning: the run whose weights training begins with")
    distil: Distil | None = Field(None, description="finished runs whose scores are learnt beside the labels")

    @model_validator(mode="before")
    @classmethod
    def _sample_counts_clips(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("encoder") is not None and "sample" not in value:
            return {**value, "sample": {"train": 1}}
        return value

    @field_validator("sample", mode="before")
    @classmethod
    def _all_rows(cls, value: Any) -> Any:
        return Sample() if value == {} else value

    @model_validator(mode="after")
    def _names(self) -> Self:
        if not self.features:
            raise ValueError("at least one modality in features")
        for modality in self.features:
            if not NAME.fullmatch(modality) or modality in GRAPHS:
                named = f"a to z, 0 to 9 and _ in names of features, and neither of {' and '.join(GRAPHS)}"
                raise ValueError(f"{named}, which an export needs, not {modality!r}")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"each modality once, not {', '.join(self.features)}")
        if self.align is not None and self.align not in self.features:
            raise ValueError(f"one of {', '.join(self.features)} in align, not {self.align}")
        if self.align is not None and isinstance(self.sample, dict):
            raise ValueError(f"one sample for all with align: it is the rows of {self.align}")
        asked = (self.sample, *(getattr(self, option, None) for option in ("clusters", "hidden", "places")))
        by_modality = [v for v in asked if isinstance(v, dict)]
        for given in by_modality:
            if set(given) != set(self.features):
                raise ValueError(
                    f"a value for each of {', '.join(self.features)}, not for {', '.join(given) or 'none'}"
                )
        return self

    @model_validator(mode="after")
    def _end_to_end(self) -> Self:
        fields = type(self).model_fields
        for option in ("encoder", "start", "distil"):
            if getattr(self, option) is not None and "train" not in fields:
                raise ValueError(f"no {option} with {self.kind}, which is not trained in steps")
        if self.encoder is not None and "network" in fields:
            raise ValueError(f"no encoder with {self.kind}, which has its network")
        if self.distil is not None and "network" in fields:
            raise ValueError(f"no distil with {self.kind}: its crops are its own, and a teacher must see them")
        if self.encoder is not None and len(self.features) > 1:
            raise ValueError(f"one store of frames or clips with an encoder, not {', '.join(self.features)}")
        return self

    @property
    def cnn(self) -> str | None:
        """The option that holds its CNN: `encoder`, or `network` of the kinds that have that."""
        return next((part for part in ("encoder", "network") if getattr(self, part, None) is not None), None)

    def with_network(self, weights: str | None, *, inflated: bool = True) -> Self:
        """The same config with the weights of its CNN in this file; of a 2D one still where it is not `inflated`."""
        part = str(self.cnn)
        cnn = getattr(self, part)
        update = {"weights": weights, **({"inflate": None} if inflated and hasattr(cnn, "inflate") else {})}
        return self.model_copy(update={part: cnn.model_copy(update=update)})

    def recipe(self) -> dict[str, Any]:
        """Without options that are null and unused, so that one that comes later leaves digests as they are."""
        return _used(self, super().recipe())

    def options(self) -> dict[str, Any]:
        """The head's own options, by name."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in _COMMON}

    def rows(self, modality: str) -> Sample:
        """How many rows of `modality`."""
        return self.sample[modality] if isinstance(self.sample, dict) else self.sample


class StepsConfig(BaseConfig):
    """Heads that join the rows of all modalities step by step: they follow the first one, or what `align` says."""

    @model_validator(mode="before")
    @classmethod
    def _in_step(cls, value: Any) -> Any:
        features = value.get("features") if isinstance(value, dict) else None
        if isinstance(features, list | tuple) and len(features) > 1 and value.get("align") is None:
            return {**value, "align": features[0]}
        return value


def refuse_one_label(config: BaseConfig, where: str) -> None:
    """Raises `UserError`, of the head `where`, for what supposes that a video has one label: here it has several."""
    encoder = config.encoder
    if getattr(getattr(config, "train", None), "balanced", False):
        fix = "set train.balanced: false"
        raise UserError("balanced classes need one label a video", where=where, got="several", fix=fix)
    if config.codes is not None:
        raise UserError("codes are for classes of which a video has one", where=where, got="several")
    if config.distil is not None:
        fix = "leave distil away"
        raise UserError("distillation is of the softmax over classes, of which a video has one", where=where, fix=fix)
    of = {"consensus": getattr(config, "consensus", None), "encoder.of": None if encoder is None else encoder.of}
    for name, value in of.items():
        if value == "softmax":
            fix = f"set {name}: logits"
            raise UserError("a softmax over classes of which a video has several", where=where, got=name, fix=fix)
