"""What a report says of a feature store: sizes, recorded statistics, and every video that did not end well.

`framepool gather` sums up a store in its store.json; that stays where the rows were temporary and are gone. Of an
extractor that keeps none `pipelines.computed` writes a file of the same words.

store = read_store(Path("work/demo/features/rgb-0123abcd"))
store.counts, store.troubles[:3]
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from features.errors import FramepoolError
from features.manifest import Manifest, read_manifest, shards
from features.outcome import NAMES, Outcome


class Trouble(NamedTuple):
    """A video whose outcome is not ok."""

    store: str
    video: str
    outcome: str
    reason: str
    rows: int
    decoded: int
    promised: int


@dataclass(frozen=True, kw_only=True)
class Store:
    """All shards of one store in short."""

    name: str
    digest: str
    recipe: dict[str, Any]
    facts: dict[str, Any]
    statistics: dict[str, str]
    shards: int
    videos: int
    rows: int
    bytes: int
    row_shape: tuple[int, ...]
    dtype: str
    counts: dict[str, int]  # outcome -> videos, in the order of the closed list
    troubles: tuple[Trouble, ...]


def troubles(store: str, outcomes: Mapping[str, Outcome]) -> tuple[Trouble, ...]:
    """Those of the `outcomes`, by video, that are not ok."""
    return tuple(
        Trouble(store, video, o.outcome, o.reason, o.rows, o.decoded, o.promised)
        for video, o in outcomes.items()
        if o.outcome != "ok"
    )


def read_store(path: Path) -> Store:
    """Sum up the manifests in a folder, one at a time, or take the summary of before; or what a file says. Raises
    `FramepoolError` where there is none of these."""
    if path.suffix:
        return _from_summary(path, "no summary of outcomes", "remove it: the next training writes it anew")
    if not (numbers := shards(path)):
        return _from_summary(path / "store.json", "store is empty", "run `framepool extract` for its extractor")
    return summed(path.name, (read_manifest(path, number) for number in numbers))


def summed(name: str, manifests: Iterable[Manifest]) -> Store:
    """Sum up the manifests, at least one, of the store `name`."""
    counts: Counter[str] = Counter()
    found: list[Trouble] = []
    statistics: list[dict[str, Any]] = []
    videos = rows = size = 0
    for manifest in manifests:
        counts.update(o.outcome for o in manifest.outcomes)
        found += troubles(name, dict(zip(manifest.ids, manifest.outcomes, strict=True)))
        statistics.append(manifest.statistics)
        videos, rows, size = videos + len(manifest.ids), rows + manifest.rows, size + manifest.bytes
    return Store(
        name=name,
        digest=manifest.digest,
        recipe=manifest.recipe,
        facts=manifest.facts,
        statistics=_merged(statistics),
        shards=len(statistics),
        videos=videos,
        rows=rows,
        bytes=size,
        row_shape=manifest.row_shape,
        dtype=manifest.dtype,
        counts={name: counts[name] for name in NAMES if counts[name]},
        troubles=tuple(found),
    )


def _from_summary(path: Path, what: str, fix: str) -> Store:
    try:
        fields = json.loads(path.read_bytes())["report"]
        found = tuple(Trouble(*trouble) for trouble in fields.pop("troubles"))
        return Store(**{**fields, "row_shape": tuple(fields["row_shape"]), "troubles": found})
    except (OSError, ValueError, KeyError, TypeError):
        raise FramepoolError(what, where=path, fix=fix) from None


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by a space."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{prefix}{key} ") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return found


def _merged(statistics: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Each statistic over all shards: the value, or from where to where it goes."""
    values: dict[str, list[Any]] = {}
    for one in statistics:
        for key, value in flat(one).items():
            values.setdefault(key, []).append(value)
    return {key: _range(found) for key, found in values.items()}


def _range(values: list[Any]) -> str:
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        low, high = (f"{v:,}" if isinstance(v, int) else f"{v:.4g}" for v in (min(values), max(values)))
        return low if low == high else f"{low} to {high}"
    texts = list(dict.fromkeys(str(v) for v in values))
    return texts[0] if len(texts) == 1 else f"{texts[0]} and {len(texts) - 1} others"
