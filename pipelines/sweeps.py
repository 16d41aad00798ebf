"""Sweeps: one head of a config in many variants, and the table that they fill.

sweeps:
  table1:
    title: "Attention Clusters (2018), Table 1"
    head: {kind: attention_cluster, features: [cnn], dropout: 0.5}
    columns: {no shift: {shift: false}, shift: {shift: true}}
    rows: {clusters: [1, 2, 4]}                 # short for {"1": {clusters: 1}, "2": {clusters: 2}, ...}
    paper: {no shift: [0.2, 0.4, 2.2], shift: [51.2, 64.8, 75.9]}

A cell is the head with what its column and then its row say; its name is ``table1_no_shift_4``. What is said by
modality, such as ``clusters: {rgb: 64, flow: 32}``, may name those of other columns, too. No torch here: the Snakefile
parses them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from features.recipe import Config

Override = dict[str, Any]


class Sweep(Config):
    """See the module. `paper` has a column's printed figures in percent, in the order of the rows."""

    title: str
    head: dict[str, Any] = Field(description="what all variants share")
    columns: dict[str, Override] = Field({"": {}}, min_length=1)
    rows: dict[str, Override] = Field(min_length=1)
    paper: dict[str, tuple[float | None, ...]] = Field({}, description="the paper's figures, where the dataset is its")
    shows: Literal["last", "best"] = Field(
        "last", description="best: the best epoch of the test beside the last, as the paper may have it"
    )
    remarks: dict[str, str] = Field({}, description="what to say below the table, by column / row or column")

    @model_validator(mode="before")
    @classmethod
    def _short_lists(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: _labelled(v) if k in ("columns", "rows") else v for k, v in value.items()}

    @model_validator(mode="after")
    def _figures_fit(self) -> Self:
        for column, figures in self.paper.items():
            if column not in self.columns or len(figures) != len(self.rows):
                raise ValueError(f"{len(self.rows)} figures for a column of {', '.join(self.columns)}, not {column}")
        for place in self.remarks:
            column, _, row = place.partition(" / ")
            if column not in self.columns or (row and row not in self.rows):
                raise ValueError(f"'column' or 'column / row' in remarks, not {place!r}")
        return self

    def cells(self, name: str) -> dict[tuple[str, str], tuple[str, dict[str, Any]]]:
        """(column, row) -> the name of its head, and that head's config as the YAML would have it."""
        configs = {
            (c, r): _merged(_merged(self.head, column), row)
            for c, column in self.columns.items()
            for r, row in self.rows.items()
        }
        known = {modality for config in configs.values() for modality in config.get("features") or ()}
        return {(c, r): (_slug(name, c, r), _cut(config, known)) for (c, r), config in configs.items()}


def expanded(value: Any) -> Any:
    """A dataset's config as it is read, its sweeps' heads among the others. Raises `ValueError`."""
    if not isinstance(value, dict) or not isinstance(value.get("sweeps"), dict):
        return value
    heads = dict(value.get("heads") or {})
    for name, sweep in value["sweeps"].items():
        if not isinstance(sweep, dict) or not {"head", "rows", "title"} <= sweep.keys():
            continue  # which is said where the sweep itself is read
        for head, config in Sweep.model_validate(sweep).cells(str(name)).values():
            if head in heads:
                raise ValueError(f"heads of different names, not two called {head} (sweeps.{name})")
            heads[head] = config
    return {**value, "heads": heads}


def _labelled(value: Any) -> Any:
    """{field: [a, b]} -> {"a": {field: a}, "b": {field: b}}."""
    if isinstance(value, dict) and len(value) == 1:
        ((field, values),) = value.items()
        if isinstance(values, list):
            return {str(v): {field: v} for v in values}
    if isinstance(value, dict):
        return {str(label): {} if override is None else override for label, override in value.items()}
    return value


def _merged(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`override` over `base`, mapping by mapping."""
    found = dict(base)
    for key, value in override.items():
        old = found.get(key)
        found[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return found


def _cut(config: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """`config` without what its options say of modalities, of those `known`, that it does not read."""
    own = set(config.get("features") or ())

    def kept(value: Any) -> Any:
        by_modality = isinstance(value, Mapping) and own and own <= value.keys() <= known
        return {m: v for m, v in value.items() if m in own} if by_modality else value

    return {key: kept(value) for key, value in config.items()}


def _slug(*parts: str) -> str:
    return "_".join(p for part in parts if (p := re.sub(r"[^a-z0-9]+", "_", part.lower()).strip("_")))
