"""`framepool assemble --partial`, on the runs that scoring is tested with: what is finished is on the page."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import yaml

from pipelines import plan as plans
from tests.scoring import world

Call = Callable[[str], tuple[int, str]]


def heads_of(here: Path) -> set[str]:
    with (here / "results" / "tiny" / "leaderboard.csv").open(newline="") as stream:
        return {row["head"] for row in csv.DictReader(stream)}


def test_a_run_counts_by_its_seeds_and_not_by_what_snakemake_takes_away(here: Path, call: Call) -> None:
    """Of a job that was stopped Snakemake removes the summaries; the runs of its heads are there."""
    for head in ("average", "late"):
        (world.run_of(head).parent / "trained.json").unlink(missing_ok=True)
    (world.run_of("late") / "run.json").unlink()
    assert call("assemble tiny")[0] == 2
    assert call("assemble tiny --partial")[0] == 0
    assert heads_of(here) == {"average", "ridge"}


def test_comparisons_of_what_is_finished(here: Path, call: Call) -> None:
    path = here / "config" / "tiny.yaml"
    config = yaml.safe_load(path.read_text())
    config["comparisons"] = [
        {"claim": "first", "better": "ridge", "than": "average"},
        {"claim": "second", "better": "late", "than": "ridge"},
    ]
    path.write_text(yaml.safe_dump(config))
    plans.of.cache_clear()
    (world.run_of("late") / "run.json").unlink()
    assert call("assemble tiny --partial")[0] == 0
    with (here / "results" / "tiny" / "tables" / "comparisons.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["claim"], row["dataset"]) for row in rows] == [("first", "tiny")]
