"""Sweeps: one head of a config in many variants, and the table that they fill.

sweeps:
  table1:
    title: "Attention Clusters (2018), Table 1"
    head: {kind: attention_cluster, features: [cnn], dropout: 0.5}
    columns: {no shift: {shift: false}, shift: {shift: true}}
    rows: {clusters: [1, 2, 4]}                 # short for {"1": {clusters: 1}, "2": {clusters: 2}, ...}
    paper: {no shift: [0.2, 0.4, 2.2], shift: [51.2, 64.8, 75.9]}
    cells: {no shift / 4: other, shift / 4: null}

A cell is the head with what its column and then its row say; its name is ``table1_no_shift_4``. What is said by
modality, such as ``clusters: {rgb: 64, flow: 32}``, may name those of other columns, too. `cells` are those that are a
head of the config as it is, or that the table does not have; ``rows: {TSN: tsn}`` is a row of such. No torch here: the
Snakefile parses them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from features.errors import UserError
from features.recipe import Config

Override = dict[str, Any]
Figures = dict[str, tuple[float | None, ...]]


class Sweep(Config):
    """See the module. `paper` and `top5` have a column's printed figures in percent, in the order of the rows."""

    title: str
    head: dict[str, Any] = Field({}, description="what all variants share")
    columns: dict[str, Override] = Field({"": {}}, min_length=1)
    rows: dict[str, Override] = Field(min_length=1)
    cells: dict[str, str | None] = Field({}, description="by column / row, a head of the config instead, or none")
    paper: Figures = Field({}, description="the paper's figures, where the dataset is its")
    top5: Figures = Field({}, description="its top-5, where it prints it: the cells of these columns show theirs, too")
    shows: Literal["last", "best"] = Field(
        "last", description="best: the best epoch of the test beside the last, as the paper may have it"
    )
    remarks: dict[str, str] = Field({}, description="what to say below the table, by column / row or column")

    @model_validator(mode="before")
    @classmethod
    def _short_lists(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        found = {k: _labelled(v) if k in ("columns", "rows") else v for k, v in value.items()}
        found |= {k: _texts(found[k]) for k in ("cells", "remarks") if k in found}
        columns, rows, cells = found.get("columns", {"": {}}), found.get("rows"), found.get("cells", {})
        if not (isinstance(columns, dict) and isinstance(rows, dict) and isinstance(cells, dict)):
            return found
        heads = {row: head for row, head in rows.items() if isinstance(head, str)}
        named = {_place(column, row): head for row, head in heads.items() for column in columns}
        return {**found, "rows": rows | {row: {} for row in heads}, "cells": named | cells}

    @model_validator(mode="after")
    def _figures_fit(self) -> Self:
        for column, figures in (*self.paper.items(), *self.top5.items()):
            if column not in self.columns or len(figures) != len(self.rows):
                raise ValueError(f"{len(self.rows)} figures for a column of {', '.join(self.columns)}, not {column}")
        places = self._places().values()
        for place in self.cells:
            if place not in places:
                expected = "'column / row'" if any(self.columns) else "a row"
                raise ValueError(f"{expected} in cells, not {place!r}")
        for place in self.remarks:
            if place not in (*self.columns, *places):
                expected = "'column' or 'column / row'" if any(self.columns) else "a row"
                raise ValueError(f"{expected} in remarks, not {place!r}")
        return self

    def heads(self, name: str) -> dict[tuple[str, str], str]:
        """(column, row) -> the name of the head of that cell."""
        named = {at: self.cells.get(place, _slug(name, *at)) for at, place in self._places().items()}
        return {at: head for at, head in named.items() if head is not None}

    def variants(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        """The heads that are of this sweep: names, and configs as the YAML would have them."""
        places = self._places()
        configs = {at: _merged(_merged(self.head, self.columns[at[0]]), self.rows[at[1]]) for at in places}
        known = set[str]().union(*map(_features, configs.values()))
        own = {at: config for at, config in configs.items() if places[at] not in self.cells}
        return [(_slug(name, *at), _cut(config, known)) for at, config in own.items()]

    def _places(self) -> dict[tuple[str, str], str]:
        """(column, row) -> how `cells` and `remarks` call it; the row alone where the one column has no name."""
        return {(c, r): _place(c, r) for c in self.columns for r in self.rows}


def expanded(value: Any, where: str) -> Any:
    """A dataset's config as it is read, its sweeps' heads among the others. Raises `UserError` where a sweep is not
    right, or two heads have one name."""
    if not isinstance(value, dict) or not isinstance(value.get("sweeps"), dict):
        return value
    heads = value.get("heads") or {}
    if not isinstance(heads, dict):
        return value  # which is said where it is read
    heads = dict(heads)
    for name, sweep in value["sweeps"].items():
        at = f"$.sweeps.{name}"
        for head, config in Sweep.parse(sweep, where, at).variants(str(name)):
            if head in heads:
                expected = f"heads of different names, not two called {head}"
                raise UserError("invalid config", where=f"{where}: {at}", expected=expected)
            heads[head] = config
    return {**value, "heads": heads}


def _place(column: str, row: str) -> str:
    return f"{column} / {row}" if column else row


def _labelled(value: Any) -> Any:
    """{field: [a, b]} -> {"a": {field: a}, "b": {field: b}}."""
    if isinstance(value, dict) and len(value) == 1:
        ((field, values),) = value.items()
        if isinstance(values, list):
            return {str(v): {field: v} for v in values}
    if isinstance(value, dict):
        return _texts({label: {} if override is None else override for label, override in value.items()})
    return value


def _texts(value: Any) -> Any:
    """Labels of numbers, as YAML reads them, are text."""
    return {str(label): said for label, said in value.items()} if isinstance(value, dict) else value


def _merged(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`override` over `base`, mapping by mapping."""
    found = dict(base)
    for key, value in override.items():
        old = found.get(key)
        found[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return found


def _features(config: Mapping[str, Any]) -> set[str]:
    """What a head reads, as far as it is said as it should be."""
    found = config.get("features")
    return {modality for modality in found if isinstance(modality, str)} if isinstance(found, list | tuple) else set()


def _cut(config: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """`config` without what its options say of modalities, of those `known`, that it does not read."""
    own = _features(config)

    def kept(value: Any) -> Any:
        by_modality = isinstance(value, Mapping) and own and own <= value.keys() <= known
        return {m: v for m, v in value.items() if m in own} if by_modality else value

    return {key: kept(value) for key, value in config.items()}


def _slug(*parts: str) -> str:
    return "_".join(p for part in parts if (p := re.sub(r"[^a-z0-9]+", "_", part.lower()).strip("_")))
