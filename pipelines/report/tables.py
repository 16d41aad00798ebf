"""The tables that a dataset's sweeps fill: rows by columns, the last and the best epoch, the paper's figures beside.

The best epoch is chosen by the test, as some papers print it: the mean over seeds and splits of each run's best.

    for table in tables(config.sweeps, heads): table.cell("FC1", "32").best
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.report.runs import Head, Run, mean, ranking
from pipelines.sweeps import Figures, Sweep


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A head of a sweep. Shares, not percent; None where there is none."""

    head: Head | None  # not trained yet
    name: str
    metric: str
    paper: float | None
    paper_top5: float | None
    own: bool  # of the sweep alone, not one of the config's heads

    @property
    def last(self) -> float | None:
        """The score of the finished runs."""
        return self.head.score(self.metric) if self.head else None

    @property
    def deviation(self) -> float | None:
        """Of `last`, over seeds."""
        return self.head.deviation(self.metric) if self.head else None

    @property
    def top5(self) -> float | None:
        """How often the label is among the five most probable, in the finished runs."""
        return self.head.score("top5") if self.head else None

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

    @property
    def own(self) -> list[Head]:
        """Those of them that are the sweep's own."""
        return [cell.head for cell in self.cells.values() if cell.head is not None and cell.own]

    def cell(self, column: str, row: str) -> Cell | None:
        """By the labels of the config; None where the table has none."""
        return self.cells.get((column, row))

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
                "top5": cell.top5,
                "paper": cell.paper,
                "paper_top5": cell.paper_top5,
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
        variants = dict(sweep.variants(name))
        cells = {
            at: Cell(
                head=by_name.get(head),
                name=head,
                metric=metric,
                paper=_printed(sweep, sweep.paper, *at),
                paper_top5=_printed(sweep, sweep.top5, *at),
                own=head in variants,
            )
            for at, head in sweep.heads(name).items()
        }
        if any(cell.head for cell in cells.values()):
            found.append(Table(name, sweep, cells))
    return found


def _printed(sweep: Sweep, figures: Figures, column: str, row: str) -> float | None:
    """What the paper has there, as a share."""
    percent = figures[column][list(sweep.rows).index(row)] if column in figures else None
    return None if percent is None else percent / 100


def _best(run: Run, metric: str) -> tuple[float | None, float | None]:
    """The best test score of a run and its epoch, from 1; the last score where nothing was tested between."""
    scores = [(s, epoch) for epoch, s in enumerate(run.history.get(f"test_{metric}", []), 1) if s is not None]
    if not scores:
        return run.value(metric), None
    score, epoch = max(scores, key=lambda pair: (pair[0], -pair[1]))
    return score, float(epoch)
