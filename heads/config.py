"""Configs of heads and their training, as they stand in a dataset's YAML. No torch here: the Snakefile parses them.

Each head has one config, told apart by `kind`; its own fields are the options that `heads.build` passes on. `train`
carries the defaults of the paper that the head is from.

    heads:
      mine: {kind: attention_cluster, features: [rgb], clusters: 64, sample: {train: 15, test: 25}, train: {epochs: 30}}
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from features.recipe import Config

Share = Annotated[float, Field(ge=0, lt=1)]
# what is no option of the head's own
_COMMON: Final = frozenset({"kind", "features", "sample", "align", "missing", "train"})
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
    balanced: bool = Field(
        False, description="each class weighs the same: a sample of class k weighs n_total / (K * n_k)"
    )
    early_stop: PositiveInt | None = Field(
        None,
        description="stop after so many epochs without a lower watched loss, and keep the weights of the best epoch",
    )
    hold_out: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0,
        description="share of each class's training videos to watch, not train on; 0: watch the training loss",
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


class BaseConfig(Config):
    """What all heads share."""

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

    @model_validator(mode="after")
    def _names(self) -> Self:
        if not self.features:
            raise ValueError("at least one modality in features")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"each modality once, not {', '.join(self.features)}")
        if self.align is not None and self.align not in self.features:
            raise ValueError(f"one of {', '.join(self.features)} in align, not {self.align}")
        if self.align is not None and isinstance(self.sample, dict):
            raise ValueError(f"one sample for all with align: it is the rows of {self.align}")
        by_modality = [v for v in (self.sample, getattr(self, "clusters", None)) if isinstance(v, dict)]
        for given in by_modality:
            if set(given) != set(self.features):
                raise ValueError(
                    f"a value for each of {', '.join(self.features)}, not for {', '.join(given) or 'none'}"
                )
        return self

    def options(self) -> dict[str, Any]:
        """The head's own options, by name."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in _COMMON}

    def rows(self, modality: str) -> Sample:
        """How many rows of `modality`."""
        return self.sample[modality] if isinstance(self.sample, dict) else self.sample


class AverageConfig(BaseConfig):
    """Mean of the rows, dropout, linear layer."""

    kind: Literal["average"] = "average"
    dropout: Share = 0.5
    train: TrainConfig = TrainConfig()


class AttentionClusterTrain(TrainConfig):
    """Attention Clusters, §4: RMSProp 1e-3, gradients clipped at 5, balanced classes; its batch size is not told."""

    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "rmsprop"
    clip: PositiveFloat | None = 5.0
    balanced: bool = True


class AttentionClusterConfig(BaseConfig):
    """Attention Clusters (CVPR 2018); the defaults are the paper's for UCF101."""

    kind: Literal["attention_cluster"] = "attention_cluster"
    clusters: PositiveInt | dict[str, PositiveInt] = Field(64, description="N, units a modality")
    weighting: Literal["average", "fc1", "fc2"] = "fc1"
    shift: bool = True
    dropout: Share = 0.9
    sample: Sample | dict[str, Sample] = Sample(train=15, test=20)
    train: AttentionClusterTrain = AttentionClusterTrain()


class RidgeConfig(BaseConfig):
    """One-vs-rest ridge regression on the mean row, in closed form; nothing to train."""

    kind: Literal["ridge"] = "ridge"
    alpha: PositiveFloat = Field(1.0, description="weight of the penalty, as scikit-learn counts it")
    standardise: bool = Field(False, description="scale each input to unit deviation over the training videos first")


class NetworkConfig(Config):
    """A CNN by name, as `extract.networks.build` makes it."""

    name: str = Field(min_length=1)
    library: Literal["timm", "torchvision", "framepool"] = "timm"
    reads: Literal["rgb", "flow", "rgbdiff", "logmel"] = Field(
        "rgb",
        description="what the rows are: pictures or clips, stacks of flow, snippets to take differences of, log-mel",
    )
    weights: str | None = Field(None, description="null: random; DEFAULT: the library's own; else a file")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the library")

    @model_validator(mode="after")
    def _ours_hear(self) -> Self:
        if self.library == "framepool" and self.reads != "logmel":
            raise ValueError(f"reads: logmel with library: framepool, whose networks hear, not {self.reads}")
        return self


class TsnTrain(TrainConfig):
    """Temporal Segment Networks, the authors' RGB settings for UCF101."""

    epochs: PositiveInt = 80
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "sgd"
    momentum: Share = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Schedule = Step(at=(30, 60))
    clip: PositiveFloat | None = 20.0


class TsnConfig(BaseConfig):
    """Temporal Segment Networks (ECCV 2016): a CNN over maps, averaged over segments."""

    kind: Literal["tsn"] = "tsn"
    network: NetworkConfig
    crop_px: PositiveInt | None = Field(None, description="side of the CNN's input; null: as its weights want it")
    augment: Literal["none", "crop", "crop_flip"] = Field(
        "crop_flip", description="TSN's multi-scale crop, and mirroring, which turns flow around; none for log-mel"
    )
    dropout: Share = 0.8
    partial_bn: bool = Field(False, description="freeze every batch norm but the first, for fine-tuning")
    first_conv_lr: PositiveFloat = Field(
        1.0,
        description="factor of the first convolution's learning rate; the authors' is 5 for flow, begun from colours",
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    missing: Literal["mean", "none"] = "none"
    sample: Sample | dict[str, Sample] = Sample(train=3, test=25)
    train: TsnTrain = TsnTrain()

    @model_validator(mode="after")
    def _maps(self) -> Self:
        if self.missing != "none":
            raise ValueError("missing: none, as the mean of maps is no map")
        if self.network.reads == "logmel" and (self.augment != "none" or self.crop_px is not None):
            raise ValueError(
                "augment: none and no crop_px with network.reads: logmel, whose two sides are time and pitch"
            )
        return self

    def options(self) -> dict[str, Any]:
        return {name: value for name, value in super().options().items() if name != "network"}


HeadConfig = Annotated[AverageConfig | AttentionClusterConfig | RidgeConfig | TsnConfig, Field(discriminator="kind")]

# bumped when a change to the code changes a head's numbers
NUMERICS: Final = {"average": 2, "attention_cluster": 2, "ridge": 2, "tsn": 2}
