"""One command makes everything, a second finds nothing to do, and what is lost is made again from what is there."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.workflow import world


def test_the_results_folder_is_complete(made: Path) -> None:
    results = made / "results" / "tiny"
    assert {"index.html", "leaderboard.csv", "metrics.json", "run.json", "figures"} <= {
        p.name for p in results.iterdir()
    }
    assert list((results / "figures").iterdir())
    with (results / "leaderboard.csv").open(newline="") as stream:
        assert {row["head"] for row in csv.DictReader(stream)} == {"average", "ridge"}
    run = json.loads((results / "run.json").read_text())
    assert world.store(made).name in json.dumps(run)


def test_nothing_but_assemble_writes_into_results(made: Path) -> None:
    assert [p.name for p in (made / "results").iterdir()] == ["tiny"]


def test_a_second_run_has_nothing_to_do(made: Path) -> None:
    assert "Nothing to be done" in world.snakemake(made)


def test_deleted_results_are_assembled_again_and_nothing_else(copy: Path) -> None:
    whole = world.contents(copy / "results")
    shutil.rmtree(copy / "results")
    assert world.planned(copy) == {"assemble": 1}
    world.snakemake(copy)
    again = world.contents(copy / "results")
    assert again.keys() == whole.keys()
    assert again["tiny/leaderboard.csv"] == whole["tiny/leaderboard.csv"]


def test_an_editor_s_file_beside_the_list_changes_nothing(copy: Path) -> None:
    (copy / "lists" / "notes.txt").write_text("mine")
    (copy / "videos" / "Jump" / "notes.txt").write_text("mine")
    assert world.planned(copy) == {}


@pytest.mark.slow
def test_two_processes_of_torchrun_make_the_same_run(copy: Path) -> None:
    """`framepool train` under torchrun: the first process writes, once."""
    (run,) = (copy / "work" / "tiny" / "runs").glob("average-*")
    shutil.rmtree(run)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    train = ["-m", "pipelines", "train", "tiny", "--head", "average", "--threads", "2"]
    printed = world.command(copy, [*torchrun, *train])
    assert printed.count("epoch 2/2") == 1 and ", 2 processes" in printed
    assert len((run / "seed0" / "history.csv").read_text().splitlines()) == 3
    assert json.loads((run / "seed0" / "run.json").read_text())["processes"] == 2
    assert "average" not in json.dumps(world.planned(copy)), "the workflow takes the run as it is"
