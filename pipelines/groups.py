"""The trainings that one job makes side by side, as the parts of a Snakemake rule: features are read once for all.

All runs of a split that are not there yet, but those whose networks somebody waits for, and those that decode videos as
they train. What is missing is looked up while the Snakefile is parsed; what is there is no output of such a job.

    for group in groups(plan.of("demo")): group.rule, group.summaries, group.inputs
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipelines.parts import Run
from pipelines.plan import WORK, Plan


@dataclass(frozen=True)
class Group:
    """Two or more runs of one split. Paths have the wildcard ``{dataset}``."""

    runs: tuple[Run, ...]

    @property
    def rule(self) -> str:
        """The rule's name; the same wherever the workflow is parsed."""
        return re.sub(r"\W", "_", f"train_{self.runs[0].plan.dataset}_{self.runs[0].split}")

    @property
    def tested(self) -> str:
        """Changes when what its runs are tested on does."""
        return self.runs[0].plan.tested(self.runs[0].split)

    @property
    def summaries(self) -> list[str]:
        """What the job makes."""
        return [f"{WORK}/{{dataset}}/runs/{run.name}/trained.json" for run in self.runs]

    @property
    def inputs(self) -> list[str]:
        """What it waits for."""
        own = {run.summary for run in self.runs}
        return sorted({path for run in self.runs for path in run.inputs} - own)

    @property
    def log(self) -> str:
        return f"{WORK}/{{dataset}}/logs/train-split{self.runs[0].split}.log"

    @property
    def benchmark(self) -> str:
        return f"{WORK}/{{dataset}}/benchmarks/train-split{self.runs[0].split}.tsv"


def groups(plan: Plan) -> list[Group]:
    """The groups that have two runs to make now."""
    found = []
    for split in plan.config.splits:
        missing = tuple(
            run for run in plan.runs() if run.split == split and not run.trains and not run.live and not run.complete
        )
        if len(missing) > 1:
            found.append(Group(missing))
    return found
