"""Sweeps: what cells a table has, and what a config of them may not say."""

from __future__ import annotations

from typing import Any

import pytest

from features.errors import UserError
from pipelines.config import Dataset

SWEEP: dict[str, Any] = {
    "title": "N",
    "head": {"kind": "attention_cluster", "features": ["rgb"], "train": {"epochs": 3, "lr": 0.1}},
    "columns": {"no shift": {"shift": False}, "FC1 + shift": {"train": {"lr": 0.2}}},
    "rows": {"clusters": [1, 64]},
}


def dataset(**changes: Any) -> Dataset:
    sweep = {**SWEEP, **changes}
    value = {
        "title": "x",
        "videos": {"format": "folder", "root": "."},
        "extractors": {"rgb": {"kind": "pixels"}},
        "sweeps": {"t1": sweep},
    }
    return Dataset.parse(value, "c.yaml")


def test_cells_are_heads() -> None:
    found = dataset()
    assert list(found.heads) == ["t1_no_shift_1", "t1_no_shift_64", "t1_fc1_shift_1", "t1_fc1_shift_64"]
    first, last = found.heads["t1_no_shift_1"], found.heads["t1_fc1_shift_64"]
    assert (first.clusters, first.shift, first.train.lr, first.train.epochs) == (1, False, 0.1, 3)  # type: ignore[union-attr]
    assert (last.clusters, last.shift, last.train.lr, last.train.epochs) == (64, True, 0.2, 3)  # type: ignore[union-attr]
    assert found.sweeps["t1"].heads("t1")["FC1 + shift", "64"] == "t1_fc1_shift_64"


def test_rows_alone_are_a_table() -> None:
    found = dataset(columns={"": {}}, rows={"64 / 32": {"clusters": 64}, "paper": None})
    assert list(found.heads) == ["t1_64_32", "t1_paper"]


def test_cells_may_be_other_heads_or_none() -> None:
    found = dataset(cells={"no shift / 1": "t1_fc1_shift_64", "no shift / 64": None})
    assert list(found.heads) == ["t1_fc1_shift_1", "t1_fc1_shift_64"]
    cells = found.sweeps["t1"].heads("t1")
    assert cells["no shift", "1"] == cells["FC1 + shift", "64"] == "t1_fc1_shift_64"
    assert ("no shift", "64") not in cells


def test_a_cell_named_otherwise_leaves_the_options_of_the_others_alone() -> None:
    extractors = {"rgb": {"kind": "pixels"}, "flow": {"kind": "pixels"}}
    sweep = {
        "title": "T",
        "head": {"dropout": 0.5},
        "columns": {"RGB": {"features": ["rgb"]}, "both": {"features": ["rgb", "flow"]}},
        "rows": {"7": {"kind": "attention_cluster", "clusters": {"rgb": 64, "flow": 32}}},
        "cells": {"both / 7": None},
    }
    videos = {"format": "folder", "root": "."}
    value = {"title": "x", "videos": videos, "extractors": extractors, "sweeps": {"t": sweep}}
    assert Dataset.parse(value, "c.yaml").heads["t_rgb_7"].clusters == {"rgb": 64}  # type: ignore[union-attr]


def test_rows_that_are_numbers_are_called_as_they_are_written() -> None:
    found = dataset(columns={"": {}}, rows={"clusters": [1, 2]}, cells={1: "t1_2"}, remarks={2: "both"})
    assert found.sweeps["t1"].heads("t1") == {("", "1"): "t1_2", ("", "2"): "t1_2"}


def test_a_table_may_be_of_other_heads_alone() -> None:
    own = {"average": {"kind": "average", "features": ["rgb"]}}
    value = {
        "title": "x",
        "videos": {"format": "folder", "root": "."},
        "extractors": {"rgb": {"kind": "pixels"}},
        "heads": own,
        "sweeps": {"t": {"title": "T", "rows": {"mean": "average"}}},
    }
    found = Dataset.parse(value, "c.yaml")
    assert list(found.heads) == ["average"] and found.sweeps["t"].heads("t") == {("", "mean"): "average"}


def test_it_can_be_read_again() -> None:
    found = dataset()
    assert Dataset.model_validate(found.model_dump(mode="json")) == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paper": {"no shift": [1.0]}}, "2 figures for a column of no shift, FC1 \\+ shift, not no shift"),
        ({"top5": {"no": [1.0, 2.0]}}, "2 figures for a column of no shift, FC1 \\+ shift, not no"),
        ({"cells": {"no shift": "t1_fc1_shift_1"}}, "'column / row' in cells, not 'no shift'"),
        ({"cells": {"no shift / 1": "other"}}, "names of heads in the cells and rows of sweeps.t1, not 'other'"),
        ({"columns": {"": {}}, "cells": {" / 1": "t1_64"}}, "a row in cells, not ' / 1'"),
        ({"remarks": {"no shift / 3": "?"}}, "'column' or 'column / row' in remarks, not 'no shift / 3'"),
        ({"rows": {"clusters": [1, -2]}}, r"\$\.heads\.t1_no_shift_2\.clusters: .*number > 0"),
        ({"rows": 3}, r"\$\.sweeps\.t1\.rows: expected keys and values, got 3"),
        ({"paper": 3}, r"\$\.sweeps\.t1\.paper: expected keys and values, got 3"),
        ({"rows": {"a b": {}, "a-b": {}}}, "heads of different names, not two called t1_no_shift_a_b"),
        ({"head": {"kind": "attention_cluster", "features": ["rgb"], "colour": 1}}, "unknown key"),
        (
            {"head": {"kind": "attention_cluster", "features": 1}},
            r"\$\.heads\.t1_no_shift_1\.features: expected a list, got 1",
        ),
        (
            {"head": {"kind": "attention_cluster", "features": [[]]}},
            r"\$\.heads\.t1_no_shift_1\.features\[0\]: expected text, ",
        ),
        ({"colour": 1}, "unknown key"),
    ],
)
def test_what_does_not_fit_is_said(changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataset(**changes)
