"""A dataset: one YAML file in ``config/``, validated here. Science only; threads and machines belong to ``profiles/``.

dataset = load("demo")                           # config/demo.yaml
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    field_validator,
    model_validator,
)

from extract.config import ExtractorConfig, FromRun, Networked
from features.errors import UserError, nearest
from features.recipe import Config, file_sha256
from features.videolist.config import VideoSource
from heads.config import NAME, BaseConfig, RunWeights
from heads.kinds import FusionConfig, HeadConfig, TsnConfig
from heads.map_kinds import MapsConfig
from pipelines.comparisons import Comparison
from pipelines.datasets.flash import FlashDigits, NoisyDigits
from pipelines.sweeps import Sweep, expanded

CONFIGS = Path("config")
DATASET = r"[a-z0-9_-]+"  # what a dataset may be called; it names folders
Name = Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}$")]


COLUMNS: Final = {
    *("head", "kind", "features", "parameters", "seconds", "seeds", "split", "seed", "loss", "epochs"),
    *("top1", "top5", "mean_class", "map", "gap", "hit1", "perr"),
}


class Rendered(Config):
    """Clips that the workflow renders itself, `count` of them, under ``work/<dataset>/videos/``: of one class each, or
    scenes of several that come and go."""

    format: Literal["rendered"]
    generator: Literal["demo", "scenes"]
    count: PositiveInt


class Dataset(Config):
    """Where the videos and annotations are, the extractors, the heads, and how they are judged."""

    title: str
    videos: Annotated[Rendered | FlashDigits | NoisyDigits | VideoSource, Field(discriminator="format")]
    splits: tuple[str, ...] = Field(("1",), min_length=1, description="splits of the list to train and test on")
    seeds: tuple[NonNegativeInt, ...] = Field((0,), min_length=1, description="each head is trained once with each")
    factors: tuple[str, ...] = Field((), description="names of the parts of a class name such as 3-left-low")
    shard_size: PositiveInt = 256
    max_bad_share: float = Field(0.05, ge=0, le=1, description="share of failed videos above which the run stops")
    disk_gb: PositiveFloat | None = Field(None, description="what all stores together may take, before compression")
    extractors: dict[Name, ExtractorConfig] = Field(min_length=1)
    heads: dict[Name, HeadConfig] = Field(min_length=1, description="those of the sweeps join them")
    sweeps: dict[Name, Sweep] = Field({}, description="variants of a head, and the table that they fill")
    comparisons: tuple[Comparison, ...] = Field((), description="pairs of heads that a paper puts in an order")

    @classmethod
    def parse(cls, data: object, where: str, at: str = "$") -> Self:
        """As it is read: the heads of its sweeps join those that it names."""
        return super().parse(expanded(data, where), where, at)

    @field_validator("splits", "seeds", "factors")
    @classmethod
    def _each_once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"each once, not {', '.join(map(str, value))}")
        return value

    @field_validator("factors")
    @classmethod
    def _no_column(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if taken := [factor for factor in value if factor in COLUMNS]:
            raise ValueError(f"names that no column of the leaderboard has, not {taken[0]!r}")
        return value

    @property
    def generated(self) -> bool:
        """Whether the videos are made as they are read, and never lie on disk."""
        return isinstance(self.videos, FlashDigits | NoisyDigits)

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        for name, head in self.heads.items():
            for modality in head.features:
                if modality not in self.extractors:
                    raise ValueError(f"an extractor's name in heads.{name}.features, not {modality!r}")
                self._readable(name, modality)
            if isinstance(head, FusionConfig):
                self._members_fit(name, head)
                continue
            if isinstance(head, TsnConfig) or head.encoder is not None:
                self._maps_fit(name, head)
            if isinstance(head, MapsConfig):
                self._activations_fit(name, head)
            self._runs_fit(name, head)
        for name, extractor in self.extractors.items():
            run = trainer(extractor)
            if run is not None and not (run in self.heads and has_network(self.heads[run])):
                raise ValueError(f"the name of a tsn head in extractors.{name}.network.weights.run, not {run!r}")
            if extractor.source is None and (extractor.kind == "frames") != self.generated:
                expected = f"kind: frames or a source in extractors.{name}, as these videos are never on disk"
                other = f"another kind than frames in extractors.{name}: these videos are on disk"
                raise ValueError(expected if self.generated else other)
            self._source_fits(name, extractor)
        for name in self.extractors:
            self._no_circle(name, ())
        for name in self.heads:
            self._no_waiting(name, ())
        for key, sweep in self.sweeps.items():
            for name in sweep.heads(key).values():
                if name not in self.heads:
                    raise ValueError(f"names of heads in the cells and rows of sweeps.{key}, not {name!r}")
        for comparison in self.comparisons:
            for name in (comparison.better, comparison.than):
                if not comparison.datasets and name not in self.heads:
                    raise ValueError(f"names of heads in comparisons, not {name!r}")
        return self

    def _readable(self, head: str, modality: str) -> None:
        """What is not stored is computed from the video for a head."""
        extractor: Any = self.extractors[modality]
        while extractor is not None and not extractor.store:
            source = self.extractors.get(extractor.source or "")
            if self.generated or (source is not None and source.store):
                reads = "a generator" if self.generated else extractor.source
                expected = f"an extractor in heads.{head}.features that is stored, or that reads the videos"
                raise ValueError(f"{expected}; {modality} has store: false and reads {reads}")
            extractor = source

    def _maps_fit(self, name: str, head: BaseConfig) -> None:
        kind, part = self.extractors[head.features[0]].kind, "network" if head.encoder is None else "encoder"
        pictures = ("rgb", "rgbdiff") if head.encoder is None else ("rgb", "rgbdiff", "stacked")
        fitting = {"pixels": pictures, "frames": pictures, "tvl1": ("flow",), "logmel": ("logmel",)}.get(kind, ())
        if head.encoder is not None and kind not in ("pixels", "frames", "tvl1"):
            raise ValueError(f"a pixels, frames or tvl1 extractor in heads.{name}.features, as it has an encoder")
        views = getattr(getattr(self.extractors[head.features[0]], "transform", None), "views", ())
        clips = getattr(self.extractors[head.features[0]], "sampling", None)
        turns = head.encoder is not None and head.encoder.frames > 1 and getattr(clips, "kind", "") != "clips"
        if turns and len(views) > 1:
            expected = f"one view in extractors.{head.features[0]}.transform.views"
            raise ValueError(f"{expected}, as the encoder of heads.{name} takes rows in turn for frames in turn")
        if fitting and getattr(head, part).reads not in fitting:
            expected = f"{part}.reads: {' or '.join(fitting)} in heads.{name}"
            raise ValueError(f"{expected}, as {head.features[0]} is {kind}")

    def _runs_fit(self, name: str, head: BaseConfig) -> None:
        for teacher in head.distil.weights if head.distil is not None else ():
            own = self.heads.get(teacher)
            if not isinstance(own, BaseConfig):
                raise ValueError(f"names of heads that are trained in heads.{name}.distil.teacher, not {teacher!r}")
            if own.features != head.features:
                reads = f"which reads {', '.join(own.features)} and not {', '.join(head.features)}"
                raise ValueError(f"teachers that see what heads.{name} sees, not {teacher!r}, {reads}")
            if len(head.features) > 1 and own.align != head.align:
                joined = f"rows joined in time as {teacher!r} has them (align: {own.align or 'null'})"
                raise ValueError(f"{joined} in heads.{name}, whose align is {head.align or 'null'}")
            if getattr(own.encoder, "frames", None) != getattr(head.encoder, "frames", None):
                raise ValueError(f"teachers with an encoder of as many frames as that of heads.{name}, not {teacher!r}")
        begun, start = beginner(head), head.start
        if begun is not None and not isinstance(self.heads.get(begun), TsnConfig):
            raise ValueError(f"the name of a tsn head in heads.{name}.{head.cnn}.weights.run, not {begun!r}")
        if start is not None and start.dataset is None and not isinstance(self.heads.get(start.run), BaseConfig):
            raise ValueError(f"the name of a head that is trained in heads.{name}.start.run, not {start.run!r}")

    def _no_waiting(self, head: str, above: tuple[str, ...]) -> None:
        if head in above:
            raise ValueError(f"heads that do not wait for each other, not {' <- '.join((*above, head))}")
        for other in waits_for(self.heads[head]):
            self._no_waiting(other, (*above, head))

    def _activations_fit(self, name: str, head: MapsConfig) -> None:
        extractor = self.extractors[head.features[0]]
        clips = extractor.kind == "pixels"
        if head.network is not None and not clips:
            raise ValueError(f"a pixels extractor in heads.{name}.features, as it has a network, not {extractor.kind}")
        if head.network is None and (clips or (isinstance(extractor, Networked) and extractor.network.pool)):
            expected = f"an extractor with network.pool: false in heads.{name}.features, or a network"
            raise ValueError(f"{expected}, as {head.kind} reads maps")

    def _members_fit(self, name: str, head: FusionConfig) -> None:
        for member in head.weights:
            if member not in self.heads or isinstance(self.heads[member], FusionConfig):
                raise ValueError(f"names of heads that are no fusion in heads.{name}.heads, not {member!r}")

    def _source_fits(self, name: str, extractor: Any) -> None:
        if extractor.source is None:
            return
        source = self.extractors.get(extractor.source)
        if source is None or source.kind not in extractor.reads:
            kinds = " or ".join(extractor.reads)
            got = f"{extractor.source!r}, which is {source.kind}" if source is not None else repr(extractor.source)
            raise ValueError(f"the name of a {kinds} extractor in extractors.{name}.source, not {got}")

    def _no_circle(self, extractor: str, above: tuple[str, ...]) -> None:
        if extractor in above:
            raise ValueError(f"extractors that do not wait for each other, not {' <- '.join((*above, extractor))}")
        config = self.extractors[extractor]
        run = trainer(config)
        heads = _all_waited_for(self.heads, run) if run else ()
        sources = [config.source] if config.source else []
        for other in (*(feature for head in heads for feature in self.heads[head].features), *sources):
            self._no_circle(other, (*above, extractor))


def has_network(head: HeadConfig) -> bool:
    """Whether a run of the head leaves a CNN that an extractor can take."""
    return isinstance(head, BaseConfig) and head.cnn is not None


def waits_for(head: HeadConfig) -> tuple[str, ...]:
    """The heads of the same dataset whose runs one of `head` needs: what it fuses, begins with, learns from."""
    if isinstance(head, FusionConfig):
        return tuple(head.weights)
    first = [head.start.run] if head.start is not None and head.start.dataset is None else []
    begun = beginner(head)
    return (*([begun] if begun else []), *first, *(head.distil.weights if head.distil is not None else ()))


def _all_waited_for(heads: Mapping[str, HeadConfig], head: str) -> set[str]:
    """`head`, those that it waits for, those that they wait for, and so on."""
    found, todo = set[str](), [head]
    while todo:
        if (one := todo.pop()) not in found:
            found.add(one)
            todo += waits_for(heads[one])
    return found


def from_run(extractor: Any) -> FromRun | None:
    """The run that makes the weights of `extractor`, if any."""
    weights = extractor.network.weights if isinstance(extractor, Networked) else None
    return weights if isinstance(weights, FromRun) else None


def trainer(extractor: Any) -> str | None:
    """The head of the same dataset whose run makes the weights of `extractor`, if any."""
    run = from_run(extractor)
    return run.run if run is not None and run.dataset is None else None


def beginner(head: HeadConfig | BaseConfig) -> str | None:
    """The head whose trained network `head` begins from, if any."""
    weights = getattr(head, head.cnn).weights if isinstance(head, BaseConfig) and head.cnn else None
    return weights.run if isinstance(weights, RunWeights) else None


def weights_digest(weights: FromRun | RunWeights | Path | str, where: str, part: str = "network") -> str:
    """What of given weights goes into a recipe: the file's sha256, or DEFAULT. Raises `UserError` without the file."""
    if isinstance(weights, FromRun | RunWeights) or weights == "DEFAULT":
        return "DEFAULT"
    path = Path(weights)
    if not path.is_file():
        raise UserError("weights are not there", where=f"{where}.{part}.weights", expected="a file", got=path)
    return file_sha256(path)


def datasets() -> list[str]:
    """Names of the configs that are there."""
    return sorted(p.stem for p in CONFIGS.glob("*.yaml"))


def config_path(name: str) -> Path:
    """Where a dataset's config is."""
    return CONFIGS / f"{name}.yaml"


def load(name: str) -> Dataset:
    """Read and validate ``config/<name>.yaml``. Raises `UserError` with the place in the file."""
    path = config_path(name)
    if not re.fullmatch(DATASET, name) or len(name) > 100 or not path.is_file():
        fix = nearest(Path(name).stem, datasets())
        if name in datasets():
            fix = "a config is called by small letters, digits, - and _ alone: rename it"
        raise UserError("unknown dataset", where=CONFIGS, expected="the name of a config", got=repr(name), fix=fix)
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_doubles(yaml.compose(text, yaml.SafeLoader), path)
        return Dataset.parse(yaml.safe_load(text), str(path))
    except yaml.MarkedYAMLError as error:
        where = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else path
        raise UserError("not YAML", where=where, got=error.problem or error) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError("not YAML", where=path, got=str(error).replace("\n", " ")) from None


def _refuse_doubles(root: yaml.Node | None, path: Path) -> None:
    """YAML would take the last of two equal keys and say nothing."""
    todo, known = [root], set[int]()  # an alias can lead back to where it is
    while todo:
        node = todo.pop()
        if id(node) in known or not isinstance(node, yaml.CollectionNode):
            continue
        known.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
            continue
        keys = set[str]()
        for key, value in node.value:
            todo.append(value)
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise UserError("key given twice", where=f"{path}:{key.start_mark.line + 1}", got=key.value)
                keys.add(key.value)
