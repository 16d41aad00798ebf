"""The config of each head, with the defaults of the paper that it is from. No torch here: the Snakefile parses them.

heads:
  mine: {kind: vtn, features: [rgb], profile: code, train: {epochs: 20}}
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from features.recipe import Config
from heads.config import BaseConfig, Plateau, RunWeights, Sample, Schedule, Share, Step, StepsConfig, TrainConfig
from heads.map_kinds import I3dConfig, KftConfig


class AverageConfig(BaseConfig):
    """Mean of the rows, dropout, linear layer. What Attention Clusters' tables call average has their recipe: see
    `config/kinetics-tuned.yaml`."""

    kind: Literal["average"] = "average"
    dropout: Share = 0.5
    train: TrainConfig = TrainConfig()


class AttentionClusterTrain(TrainConfig):
    """Attention Clusters, §4: RMSProp 1e-3, clipped at 5, balanced classes; batch size and epochs are not told."""

    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "rmsprop"
    clip: PositiveFloat | None = 5.0
    balanced: bool = True


class AttentionClusterConfig(BaseConfig):
    """Attention Clusters (CVPR 2018); rows and dropout are the paper's for UCF101, for which it names no N."""

    kind: Literal["attention_cluster"] = "attention_cluster"
    clusters: PositiveInt | dict[str, PositiveInt] = Field(64, description="N, units a modality")
    weighting: Literal["average", "fc1", "fc2"] = "fc1"
    shift: bool = True
    dropout: Share = 0.9
    sample: Sample | dict[str, Sample] = Sample(train=15, test=20)
    train: AttentionClusterTrain = AttentionClusterTrain()


class FlattenConfig(BaseConfig):
    """All rows side by side; Attention Clusters (CVPR 2018), appendix B, with that paper's recipe."""

    kind: Literal["flatten"] = "flatten"
    places: PositiveInt | dict[str, PositiveInt] = Field(25, description="rows a modality; the paper's sound has 10")
    dropout: Share = 0.9
    sample: Sample | dict[str, Sample] = Sample(train=25, test=25)
    train: AttentionClusterTrain = AttentionClusterTrain()

    @model_validator(mode="before")
    @classmethod
    def _sample_for_all_places(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("encoder") is not None:
            return value
        places = value.get("places")
        if isinstance(places, dict):
            if value.get("align") is not None:  # one sample for all
                return value
            return {"sample": {m: {"train": n, "test": n} for m, n in places.items()}, **value}
        return {"sample": {"train": places, "test": places}, **value} if isinstance(places, int) else value


class TsLstmTrain(TrainConfig):
    """The authors' code: Adam 1e-4, 100 epochs, batches of 64, each gradient clamped to 5."""

    epochs: PositiveInt = 100
    batch: PositiveInt = 64
    lr: PositiveFloat = 1e-4
    clip_value: PositiveFloat | None = 5.0


class TsLstmConfig(StepsConfig):
    """TS-LSTM (2017): segments with batch norm and max-pooling, then an LSTM."""

    kind: Literal["ts_lstm"] = "ts_lstm"
    segments: PositiveInt = Field(5, description="3 in the authors' code, 5 in Attention Clusters")
    hidden: PositiveInt = 512
    dropout: Share = 0.0
    sample: Sample | dict[str, Sample] = Sample(train=25, test=25)
    train: TsLstmTrain = TsLstmTrain()


class TemporalInceptionTrain(TrainConfig):
    """The authors' code: Adam 5e-5 with a weight decay of 0.1, 30 epochs, batches of 16."""

    batch: PositiveInt = 16
    lr: PositiveFloat = 5e-5
    weight_decay: NonNegativeFloat = 0.1


class TemporalInceptionConfig(StepsConfig):
    """Temporal-Inception (2017): convolutions along time."""

    kind: Literal["temporal_inception"] = "temporal_inception"
    hidden: PositiveInt = 1024
    dropout: Share = 0.2
    sample: Sample | dict[str, Sample] = Sample(train=25, test=25)
    train: TemporalInceptionTrain = TemporalInceptionTrain()


class BiLstmConfig(BaseConfig):
    """Bi-LSTM of Attention Clusters (CVPR 2018), appendix B, with that paper's recipe."""

    kind: Literal["bilstm"] = "bilstm"
    hidden: PositiveInt | dict[str, PositiveInt] = Field(
        1024, description="units a direction; 512 for the paper's flow and sound"
    )
    dropout: Share = 0.9
    sample: Sample | dict[str, Sample] = Sample(train=15, test=20)
    train: AttentionClusterTrain = AttentionClusterTrain()


class VtnTrain(TrainConfig):
    """VTN (2019), §4: Adam 1e-4 with L2 of 1e-4, a tenth of the rate where the loss stays, about 50 epochs; of either
    `profile`, for the authors' code has other schedules in other versions.

    The paper watches a validation set: that is `hold_out`. Without one, as here, the loss of training is watched.
    """

    epochs: PositiveInt = 50
    batch: PositiveInt = 32
    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 1e-4
    schedule: Schedule = Plateau(patience=3)


class StackedLstmConfig(StepsConfig):
    """Stacked LSTMs, the baseline of VTN (2019), with its recipe."""

    kind: Literal["stacked_lstm"] = "stacked_lstm"
    layers: PositiveInt = 3
    hidden: PositiveInt = 512
    dropout: Share = Field(0.5, description="of the features")
    between: Share = Field(0.2, description="dropout between layers")
    sample: Sample | dict[str, Sample] = Sample(train=16, test=16)
    train: VtnTrain = VtnTrain()


class VtnConfig(StepsConfig):
    """VTN decoder (2019) on cached features."""

    kind: Literal["vtn"] = "vtn"
    profile: Literal["paper", "code"] = Field("paper", description="where the two differ: heads/vtn.py")
    blocks: PositiveInt = 4
    heads: PositiveInt = 8
    dim: PositiveInt = 512
    length: PositiveInt = Field(16, description="frames it looks at; a longer video gives so many at equal intervals")
    shared: bool = Field(False, description="one block, applied again and again")
    output_projection: bool = False
    norm: Literal["post", "pre", "none"] = "post"
    positions: bool = True
    embed: Literal["profile", "auto", "always"] = Field(
        "profile", description="a linear layer to `dim`: always, or where features are of another width"
    )
    sample: Sample | dict[str, Sample] = Sample(train=16, test=16)
    train: VtnTrain = VtnTrain()

    @model_validator(mode="before")
    @classmethod
    def _sample_what_it_looks_at(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("encoder") is None and isinstance(n := value.get("length"), int):
            return {"sample": {"train": n, "test": n}, **value}
        return value

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"a dim that {self.heads} heads divide, not {self.dim}")
        return self


class NetVladConfig(BaseConfig):
    """NetVLAD (CVPR 2016)."""

    kind: Literal["netvlad"] = "netvlad"
    centres: PositiveInt = 64
    dropout: Share = 0.5
    train: TrainConfig = TrainConfig()


class NextVladConfig(BaseConfig):
    """NeXtVLAD (ECCV workshops 2018), the sizes of the authors' code for YouTube-8M."""

    kind: Literal["nextvlad"] = "nextvlad"
    centres: PositiveInt = 128
    groups: PositiveInt = 8
    expansion: PositiveInt = 2
    hidden: PositiveInt = 2048
    squeeze: PositiveInt = Field(8, description="the gates' bottleneck is so many times narrower")
    dropout: Share = 0.5
    train: TrainConfig = TrainConfig()


class NoisyOrConfig(BaseConfig):
    """Noisy-or over rows, a head of ours: one row that shows a class is enough."""

    kind: Literal["noisy_or"] = "noisy_or"
    hidden: PositiveInt = 128
    dropout: Share = 0.0
    exclusive: bool = Field(False, description="a row shows one class, or part of a code, at most")
    counts: int = Field(
        0, ge=0, le=4, description="learn what one, ..., so many rows or more tell of a class; 0: not counted"
    )
    train: TrainConfig = TrainConfig()


class RidgeConfig(BaseConfig):
    """One-vs-rest ridge regression on the mean row, in closed form; nothing to train."""

    chance: ClassVar[bool] = False
    kind: Literal["ridge"] = "ridge"
    alpha: PositiveFloat = Field(1.0, description="weight of the penalty, as scikit-learn counts it")
    standardise: bool = Field(False, description="scale each input to unit deviation over the training videos first")


class SvmConfig(BaseConfig):
    """A linear support vector machine for each class on the mean row, by scikit-learn."""

    chance: ClassVar[bool] = False
    kind: Literal["svm"] = "svm"
    c: PositiveFloat = Field(1.0, description="inverse weight of the penalty")


class LogisticConfig(BaseConfig):
    """Logistic regression on the mean row, by scikit-learn."""

    chance: ClassVar[bool] = False
    kind: Literal["logistic"] = "logistic"
    c: PositiveFloat = Field(1.0, description="inverse weight of the penalty")


_READ_BY_OURS: Final = {"flash_cnn": "rgb", **dict.fromkeys(("yamnet", "vggish", "vgg16_audio"), "logmel")}


class NetworkConfig(Config):
    """A CNN by name, as `extract.networks.build` makes it."""

    name: str = Field(min_length=1)
    library: Literal["timm", "torchvision", "framepool"] = "timm"
    reads: Literal["rgb", "flow", "rgbdiff", "logmel"] = Field(
        "rgb",
        description="what the rows are: pictures or clips, stacks of flow, snippets to take differences of, log-mel",
    )
    weights: str | RunWeights | None = Field(
        None,
        description="null: random; DEFAULT: the library's own; {run: HEAD}: what that head trained, such as flow begun "
        "from pictures; else a file",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the library")
    inflate: Literal["mean", "centre"] | None = Field(
        None,
        description="the weights are of the 2D network that this 3D one was made of; see extract/networks/inflate.py",
    )

    @model_validator(mode="after")
    def _ours_read_one_thing(self) -> Self:
        own = _READ_BY_OURS.get(self.name, self.reads)
        if self.library == "framepool" and self.reads != own:
            raise ValueError(f"reads: {own} with framepool's {self.name}, not {self.reads}")
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
    partial_bn: bool | Literal["all"] = Field(
        False,
        description="freeze every batch norm but the first, for fine-tuning; all: the first too, as weights want it "
        "whose norms are folded into their convolutions",
    )
    first_conv_lr: PositiveFloat = Field(
        1.0,
        description="factor of the first convolution's learning rate; the authors' is 5 for flow, begun from colours",
    )
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


class FusionConfig(Config):
    """The mean of what other heads of the config say; `heads: {rgb: 1, flow: 1.5}` gives them weights."""

    chance: ClassVar[bool] = True
    features: ClassVar[tuple[str, ...]] = ()  # its members read them

    kind: Literal["fusion"] = "fusion"
    heads: tuple[str, ...] | dict[str, PositiveFloat] = Field(description="names of two or more other heads")
    of: Literal["logits", "softmax"] = "logits"

    @model_validator(mode="after")
    def _several(self) -> Self:
        if len(self.weights) < 2 or len(self.weights) < len(self.heads):
            raise ValueError(f"two or more heads, each once, not {', '.join(self.heads) or 'none'}")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each member, not yet scaled to a sum of 1."""
        return dict(self.heads) if isinstance(self.heads, dict) else dict.fromkeys(self.heads, 1.0)


HeadConfig = Annotated[
    AverageConfig
    | AttentionClusterConfig
    | FlattenConfig
    | TsLstmConfig
    | TemporalInceptionConfig
    | BiLstmConfig
    | StackedLstmConfig
    | VtnConfig
    | NetVladConfig
    | NextVladConfig
    | NoisyOrConfig
    | RidgeConfig
    | SvmConfig
    | LogisticConfig
    | TsnConfig
    | KftConfig
    | I3dConfig
    | FusionConfig,
    Field(discriminator="kind"),
]

# bumped when a change to the code changes a head's numbers
NUMERICS: Final = {
    "noisy_or": 5,
    **dict.fromkeys(("attention_cluster", "vtn", "ts_lstm"), 4),
    **dict.fromkeys(("average", "flatten", "kft", "temporal_inception", "bilstm", "nextvlad", "ridge", "logistic"), 3),
    **dict.fromkeys(("stacked_lstm", "netvlad", "svm", "tsn", "i3d"), 2),
    "fusion": 1,
}


HEAVY: Final = 0.8  # dropout from which on a wide classifier computes with what is kept alone


def numerics(config: Any) -> int:
    """What a run's digest has of the code that trains `config`: its kind's number, one more where bf16 steps crop, as
    their crops were of bf16 places once, one where an LSTM learns in bf16, which torch's kernel did once, one where
    dropout is heavy, as that of wide ones was drawn otherwise, one where a noisy-or excludes or counts, as its sums
    were taken in another order, one where an encoder may lack clips, which its head saw as well, one where labels are
    cut to clips of several modalities, of which the first alone gave the span, two where videos are held out, which
    tore groups apart and might be one too few, one where bf16 steps sum what is float32: parts of codes, clips, maps or
    rows, one where probabilities are averaged, of which the least were 1e-30, and one where an encoder crops
    differences, which it did less far."""
    cnn = getattr(config, config.cnn) if isinstance(config, BaseConfig) and config.cnn else None
    augment = getattr(cnn, "augment", getattr(config, "augment", "none"))
    crops = cnn is not None and augment != "none"
    heavy = isinstance(config, AttentionClusterConfig) and config.dropout >= HEAVY
    lstm = isinstance(config, TsLstmConfig | BiLstmConfig | StackedLstmConfig)
    encoder, train = getattr(config, "encoder", None), getattr(config, "train", None)
    joined = isinstance(config, AverageConfig) or encoder is not None or getattr(config, "consensus", "max") != "max"
    sums = joined or getattr(config, "codes", None) is not None
    bf16 = train is not None and train.precision == "bf16"
    rows = isinstance(config, NoisyOrConfig) and (config.exclusive or config.counts > 0)
    lacking = encoder is not None and config.rows(config.features[0]).train != 1
    spans = train is not None and train.clip_s is not None and len(config.features) > 1 and config.align is None
    held = train is not None and train.hold_out > 0
    shares = "softmax" in (getattr(config, "consensus", ""), getattr(encoder, "of", ""), getattr(config, "of", ""))
    far = encoder is not None and encoder.reads == "rgbdiff" and crops
    return (
        NUMERICS[config.kind] + bf16 * (crops + lstm + sums) + heavy + rows + lacking + spans + 2 * held + shares + far
    )
