"""The tables that a dataset's sweeps fill: rows by columns, the last and the best epoch, the paper's figures beside.

The best epoch is chosen by the test, as some papers print it: the mean over seeds and splits of each run's best.

    for table in tables(config.sweeps, heads): table.cell("FC1", "32").best
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.report.runs import Head, Run, mean, ranking
from pipelines.sweeps import Sweep


@dataclass(frozen=True)
class Cell:
    """A head of a sweep. Shares, not percent; None where there is none."""

    head: Head | None  # not trained yet
    name: str
    metric: str
    paper: float | None

    @property
    def last(self) -> float | None:
        """The score of the finished runs."""
        return self.head.score(self.metric) if self.head else None

    @property
    def deviation(self) -> float | None:
        """Over seeds."""
        return self.head.deviation(self.metric) if self.head else None

    @property
    def best(self) -> float | None:
        """The best epoch of the test."""
        return mean(_best(run, self.metric)[0] for run in self.head.runs) if self.head else None

    @property
    def best_epoch(self) -> float | None:
        """Which that was, in the mean."""
        return mean(_best(run, self.metric)[1] for run in self.head.runs) if self.head else None

    @property
    def epochs(self) -> float | None:
        """How many there were, in the mean."""
        return mean(run.record.get("epochs") for run in self.head.runs) if self.head else None


@dataclass(frozen=True)
class Table:
    """A sweep with what its heads came to."""

    name: str
    sweep: Sweep
    cells: Mapping[tuple[str, str], Cell]

    @property
    def heads(self) -> list[Head]:
        """Those that are trained."""
        return [cell.head for cell in self.cells.values() if cell.head is not None]

    @property
    def top(self) -> float | None:
        """The best figure of the table, as it is shown."""
        found = [self.shown(cell) for cell in self.cells.values()]
        return max((value for value in found if value is not None), default=None)

    def cell(self, column: str, row: str) -> Cell:
        """By the labels of the config."""
        return self.cells[column, row]

    def shown(self, cell: Cell) -> float | None:
        """What stands first in a cell."""
        return cell.best if self.sweep.shows == "best" else cell.last

    def rows(self) -> list[dict[str, Any]]:
        """The table as a CSV has it; shares of 1, the paper's too."""
        return [
            {
                "column": column,
                "row": row,
                "head": cell.name,
                "last": cell.last,
                "std_over_seeds": cell.deviation,
                "best_epoch": cell.best,
                "best_epoch_number": cell.best_epoch,
                "epochs": cell.epochs,
                "paper": cell.paper,
                "shown_less_paper": None if shown is None or cell.paper is None else shown - cell.paper,
            }
            for (column, row), cell in self.cells.items()
            for shown in [self.shown(cell)]
        ]


def tables(sweeps: Mapping[str, Sweep], heads: Sequence[Head]) -> list[Table]:
    """One for each sweep of which a head is trained."""
    by_name, metric = {head.name: head for head in heads}, ranking(heads)
    found = []
    for name, sweep in sweeps.items():
        cells = {}
        for (column, row), (head, _) in sweep.cells(name).items():
            printed = sweep.paper.get(column)
            paper = None if printed is None else printed[list(sweep.rows).index(row)]
            cells[column, row] = Cell(by_name.get(head), head, metric, None if paper is None else paper / 100)
        if any(cell.head for cell in cells.values()):
            found.append(Table(name, sweep, cells))
    return found


def _best(run: Run, metric: str) -> tuple[float | None, float | None]:
    """The best test score of a run and its epoch, from 1; the last score where nothing was tested between."""
    scores = [(s, epoch) for epoch, s in enumerate(run.history.get(f"test_{metric}", []), 1) if s is not None]
    if not scores:
        return run.value(metric), None
    score, epoch = max(scores, key=lambda pair: (pair[0], -pair[1]))
    return score, float(epoch)
