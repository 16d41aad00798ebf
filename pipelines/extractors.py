"""The extractors of a run: what its run.json says of them, and the stages that they are once more.

A run's stores have digests, and a stage is built only where config, code and weights come to the same ones: nothing is
scored, streamed or exported with other features than the head was trained on. The dataset is not needed for it.

    stages = Stages(cache); stage = stages.found[stages.of(trained, "rgb")]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from extract.config import AnyExtractor, ExtractorConfig, Frames, Imported, Networked, recipe
from extract.stage import Stage
from features.errors import FramepoolError, UserError, printable
from features.recipe import digest, file_sha256
from heads.config import NAME
from heads.scoring import Trained
from pipelines import plan as plans
from pipelines.described import WEIGHTS_OF, described, own_weights

_AGAIN = "extract and train again"


class Stages:
    """Stages by the digest of their recipe: runs that read the same extractor share it."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self.found: dict[str, Stage] = {}
        self.made_from: dict[str, dict[str, Any]] = {}  # what run.json says of each

    def of(self, run: Trained, modality: str) -> str:
        """The digest of the extractor whose rows are `modality` of a run; it is in `found` from now on."""
        store = run.record["stores"].get(modality)
        if store is None:
            raise FramepoolError("run does not load", where=run.folder, expected=f"the store of {modality}", fix=_AGAIN)
        extractor = run.record.get("extractors", {}).get(modality) or _by_config(run, modality)
        found = self._stage(run, extractor, store["facts"], modality)
        if found != store["digest"]:
            raise _other(run, modality, store["digest"], found)
        ours = _of_any_processor(self.found[found].lasting_facts)
        for key, theirs in _of_any_processor(store["facts"]).items():
            if ours.get(key) != theirs:
                where = f"{run.folder}: {modality}: {key}"
                fix = f"its weights were replaced or trained again: {_AGAIN}"
                raise UserError("not the run's extractor", where=where, expected=theirs, got=ours.get(key), fix=fix)
        return found

    def _stage(self, run: Trained, extractor: dict[str, Any], facts: dict[str, Any], modality: str = "") -> str:
        try:
            config: AnyExtractor = TypeAdapter(ExtractorConfig).validate_python(extractor["config"])
            source, own = extractor["source"], extractor["recipe"]
            weights = own["network"]["weights"] if isinstance(config, Networked) else None
            if not NAME.fullmatch(extractor["extractor"]):  # stores are named after it
                raise ValueError(f"no name of an extractor: {extractor['extractor']!r}")
        except (ValueError, KeyError, TypeError) as error:
            got = printable(str(error).splitlines()[0])
            raise FramepoolError("run does not load", where=run.folder, got=got, fix=_AGAIN) from None
        before = None if source is None else self._stage(run, source, {})
        name = digest(recipe(config, weights, before))
        if name != digest(own):
            raise _other(run, extractor["extractor"], digest(own), name)
        if name not in self.found:
            stage = Stage.of(
                config,
                weights=_weights(run, extractor["weights"], facts),
                cache=self._cache,
                before=None if before is None else self.found[before],
                made_shape=_made_shape(run, config, modality),
            )
            self.found[name] = self._quantised(run, stage, facts)
            self.made_from[name] = extractor
        return name

    def _quantised(self, run: Trained, stage: Stage, facts: dict[str, Any]) -> Stage:
        """With the int8 network that the run's dataset calibrated."""
        if not isinstance(stage.config, Networked) or stage.config.precision != "int8":
            return stage
        name = Path(facts.get("int8", "")).name
        if not name or not (self._cache / name).is_dir():
            fix = f"bring the folder of that name, or run `framepool extract {run.record['dataset']}` here once"
            raise UserError("its int8 network is not here", where=self._cache, expected=name or "its name", fix=fix)
        return replace(stage, facts={**stage.facts, "int8": name})


def _made_shape(run: Trained, config: AnyExtractor, modality: str) -> tuple[int, ...] | None:
    """Of a row that no video is decoded for."""
    if isinstance(config, Frames):
        generator = plans.of(run.record["dataset"]).generator
        return None if generator is None else generator.shape
    return tuple(run.head.shapes[modality]) if isinstance(config, Imported) and run.head is not None else None


def _other(run: Trained, extractor: str, expected: str, got: str) -> UserError:
    where = f"{run.folder}: {printable(extractor)}"
    return UserError("not the run's extractor", where=where, expected=expected[:16], got=got[:16], fix=_AGAIN)


def _by_config(run: Trained, modality: str) -> dict[str, Any]:
    """Of a run from before run.json said it: what its dataset's config makes, if that has not changed since."""
    plan = plans.of(run.record["dataset"])
    store = plan.store(modality, run.record["split"])
    if store.digest != (expected := run.record["stores"][modality]["digest"]):
        raise _other(run, modality, expected, store.digest)
    return described(store)


def _of_any_processor(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Without whether steps were in bf16 or, for want of it, in fp32: a run may score on another machine."""
    found = {key: value for key, value in facts.items() if key != "steps"}
    return {k: _of_any_processor(value) if isinstance(value, Mapping) else value for k, value in found.items()}


def _weights(run: Trained, named: str | None, facts: dict[str, Any]) -> Path | str | None:
    """The file of these weights: with the run, where it was, or there as seen from the run's own tree. Its sha256 is
    compared before anything opens it."""
    if named is None or named == "DEFAULT":
        return named
    expected, path, folder = facts.get("weights_sha256", ""), Path(named), run.folder.absolute()
    own = [own_weights(place, expected, path) for place in (folder.parent, folder)]
    trees = [folder.parents[4] / path] if len(folder.parents) > 4 else []  # ROOT/work/DATASET/runs/RUN/seedS
    for place in (*own, path, *trees):
        if place.is_file() and file_sha256(place) == expected:
            return place
    fix = f"put the file of that sha256 there, or into the run as {WEIGHTS_OF}/{own[0].name}"
    got = "another file" if path.is_file() else "no file"
    where = f"{run.folder}: {printable(named)}"
    raise UserError("weights are not there", where=where, expected=f"sha256 {expected}", got=got, fix=fix)
