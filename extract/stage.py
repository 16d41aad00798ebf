"""A stage: an extractor ready to run: its facts settled, its network converted, its engine at hand.

What makes a shard and what scores an archive both build lanes of stages and `fill` them from one decoding.

    stage = Stage.of(config, weights=path, cache=cache)
    lanes = connect([(stage, sink)], 2, stack)
    with Decoders([stage.first.job], paths, 2) as decoders:
        for _ in fill([lanes[stage.first]], decoders): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from extract.calibration import Calibration
from extract.config import AnyExtractor, Frames, FromVideo, Imported, Networked, Tvl1
from extract.convert import prepare
from extract.decoders import End, Row
from extract.flow import FlowEngine
from extract.lanes import Fan, Lane, PassOn, Plain, Sink
from extract.runtime import Engine, Model, engine, steps
from extract.samples import PATCH, AnyJob, job_of

Facts = dict[str, Any]


@dataclass(frozen=True, eq=False)  # a stage is itself and no other
class Stage:
    """An extractor with what it leads to: the shape and type of its rows, and its engine when it comes to run.
    `before` is the stage whose rows it reads; without one it reads the video, or a store."""

    config: AnyExtractor
    facts: Facts
    model: Model | None
    before: Stage | None
    cache: Path

    @classmethod
    def of(
        cls,
        config: AnyExtractor,
        *,
        weights: Path | str | None,
        cache: Path,
        before: Stage | None = None,
        source: Facts | None = None,
        made_shape: tuple[int, ...] | None = None,
        calibration: Calibration | None = None,
    ) -> Self:
        """Settle the facts, and convert the network where that was not done before.

        `source` are the facts of the store that it reads, `made_shape` is that of frames (H, W, C) that a generator
        makes, or of rows that others made. Raises what `extract.networks.build` raises.
        """
        source = before.facts if before is not None else source
        facts: Facts
        model = None
        if isinstance(config, Networked) and weights is not None:
            shape = None if source is None else tuple(source["row_shape"])
            model = Model(config, weights, shape, calibration)
            facts = {**prepare(model, cache), "dtype": "float16"}
            if config.precision == "bf16":
                facts["steps"] = steps(config)
        elif isinstance(config, FromVideo):
            job = job_of(config, transform := config.transform.recipe())
            side = job.shape[-2:] if isinstance(config, Tvl1) else job.shape
            shape = (*side, 2 * config.pairs) if isinstance(config, Tvl1) else side
            facts = {"transform": transform, "row_shape": list(shape), "dtype": "uint8"}
        elif made_shape is not None and isinstance(config, Frames):
            facts = {"row_shape": list(made_shape), "dtype": "uint8"}
        elif made_shape is not None and isinstance(config, Imported):
            facts = {"row_shape": list(made_shape), "dtype": config.dtype}
        else:
            facts = {"row_shape": list(PATCH), "dtype": "float32"}
        if source is not None:
            facts["source"] = source
        return cls(config, facts, model, before, cache)

    @property
    def first(self) -> Stage:
        """The one that reads the video."""
        return self if self.before is None else self.before.first

    @property
    def job(self) -> AnyJob:
        """How a video becomes its samples."""
        return job_of(self.config, self.facts.get("transform", {}))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that its rows are kept in."""
        return np.dtype(self.facts["dtype"])

    @property
    def output(self) -> str:
        """What gives its rows, in words: the layer of a network, or the kind of extractor."""
        if not isinstance(self.config, Networked):
            return self.config.kind
        network = self.config.network
        return f"{f'layer {network.layer}' if network.layer else 'the features'} of {network.name}"

    @property
    def row_shape(self) -> tuple[int, ...]:
        """*D of a row."""
        return tuple(self.facts["row_shape"])

    @property
    def lasting_facts(self) -> Facts:
        """What a manifest and a run keep of its facts."""
        return {k: v for k, v in self.facts.items() if k not in ("row_shape", "dtype")}

    @property
    def input(self) -> tuple[tuple[int, ...], np.dtype[Any], int | None]:
        """Shape, type and crop of what its engine reads."""
        if self.model is not None and (source := self.facts.get("source")):
            shape, crop = tuple(source["row_shape"]), self.facts["transform"].get("crop")
            return shape, np.dtype(source["dtype"]), crop
        if isinstance(self.config, Frames):
            return self.row_shape, np.dtype(np.uint8), None
        if isinstance(self.config, Imported):  # the writer rounds
            return self.row_shape, np.dtype(self.facts["dtype"].replace("16", "32")), None
        return self.job.shape, self.job.dtype, None

    def engine(self, threads: int, precision: str | None = None) -> Engine:
        """What makes rows of samples; in another `precision` than the config's where one is given."""
        if self.model is not None:
            return engine(self.model, self.facts, self.cache, threads=threads, precision=precision)
        if isinstance(self.config, Tvl1):
            return FlowEngine(self.config.backend, self.config.bound_px, device=self.config.device, threads=threads)
        return Plain()

    @property
    def batch(self) -> int:
        """Rows that go through the engine together."""
        if isinstance(self.config, Networked):
            return self.config.batch
        return max(1, min(32, (8 << 20) // int(np.prod(self.facts["row_shape"]))))

    def lane(self, sink: Sink, threads: int, engine: Engine | None = None) -> Lane:
        """The lane of this stage alone."""
        return Lane(engine or self.engine(threads), self.batch, *self.input, sink)


def connect(
    ends: Sequence[tuple[Stage, Sink]], threads: int, stack: ExitStack, engines: Mapping[Stage, Engine] | None = None
) -> dict[Stage, Lane]:
    """The lanes that lead to `ends`; a stage that several others read runs once for all of them."""
    sinks: dict[Stage, list[Sink]] = {}
    for stage, sink in ends:
        sinks.setdefault(stage, []).append(sink)
    todo, lanes = list(sinks), dict[Stage, Lane]()
    while todo:  # a stage is built when all that read it are
        stage = next(one for one in todo if not any(_reads(other, one) for other in todo))
        todo.remove(stage)
        own = sinks[stage]
        lane = stage.lane(own[0] if len(own) == 1 else Fan(own), threads, (engines or {}).get(stage))
        lanes[stage] = stack.enter_context(lane)
        if stage.before is not None:
            if stage.before not in sinks:
                todo.append(stage.before)
            sinks.setdefault(stage.before, []).append(PassOn(lane))
    return lanes


def _reads(stage: Stage, other: Stage) -> bool:
    """Whether `stage` reads `other`, directly or not."""
    return stage.before is not None and (stage.before is other or _reads(stage.before, other))


def fill(lanes: Sequence[Lane], items: Iterable[Row | End]) -> Iterator[None]:
    """Every sample and every end into the lane of its job; what is left in them goes its way at the end. Yields after
    each."""
    for item in items:
        lanes[item.job].push(item)
        yield
    for lane in lanes:
        lane.flush()
    yield
