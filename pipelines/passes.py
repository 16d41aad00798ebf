"""The jobs of stage one that are not one lasting shard of one store, as the parts of Snakemake rules.

Several stores that the same shards lack come out of one pass over the videos; rows that only feed others are removed
when nothing reads them any more. What is missing is looked up while the Snakefile is parsed; what is there is no output
of such a job.

    for shared in passes(plan.of("demo")): shared.rule, shared.kept, shared.removed
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from features.manifest import manifest_path
from features.recipe import digest
from pipelines import plan as plans
from pipelines.config import DATASET, config_path
from pipelines.plan import RESULTS, WORK, Plan, Store

DEFAULT = "demo"  # what Snakemake makes that is not told what
_LONGEST: Final = 200  # letters of a file's name, which may have 255 with what others put around it


@dataclass(frozen=True)
class Pass:
    """Shards of `stores` that one job makes. Paths have the wildcards ``{dataset}`` and ``{shard}``."""

    stores: tuple[Store, ...]
    numbers: tuple[int, ...] | None  # shards; None: all

    @property
    def rule(self) -> str:
        """The rule's name; the same wherever the workflow is parsed."""
        splits = {s.split for s in self.stores if s.split}
        parts = ["extract", self.stores[0].plan.dataset, *self._names, *sorted(splits)]
        return _short(re.sub(r"\W", "_", "_".join(parts)))  # SLURM's logs are named after it

    @property
    def shards(self) -> str:
        """Constraint of the wildcard."""
        return r"\d{5}" if self.numbers is None else "|".join(f"{n:05d}" for n in self.numbers)

    @property
    def kept(self) -> list[str]:
        return [f"{_place(s)}/{{shard}}.{'was.' if s.config.temporary else ''}json" for s in self.stores]

    @property
    def removed(self) -> list[str]:
        return [f"{_place(s)}/{{shard}}.json" for s in self.stores if s.config.temporary]

    @property
    def removed_folders(self) -> list[str]:
        return [f"{_place(s)}/{{shard}}.zarr" for s in self.stores if s.config.temporary]

    @property
    def log(self) -> str:
        return f"{WORK}/{{dataset}}/logs/{_short('+'.join(self._names))}/{{shard}}.log"

    @property
    def benchmark(self) -> str:
        return f"{WORK}/{{dataset}}/benchmarks/{_short('+'.join(self._names))}/{{shard}}.tsv"

    @property
    def gpus(self) -> int:
        return max(s.gpus for s in self.stores)

    @property
    def _names(self) -> list[str]:
        return [s.name if s.split else s.extractor for s in self.stores]


def passes(plan: Plan) -> list[Pass]:
    """The shared jobs that are to do now, and the job of each temporary store."""
    ready = [s for s in plan.stores() if s.reads_video and not s.waits_for_training]
    lacking: dict[tuple[int, ...], list[int]] = {}
    for shard in range(plan.shard_count if len(ready) > 1 else 0):
        missing = tuple(n for n, store in enumerate(ready) if _missing(plan, store, shard))
        if len(missing) > 1:
            lacking.setdefault(missing, []).append(shard)
    shared = [Pass(tuple(ready[n] for n in which), tuple(numbers)) for which, numbers in lacking.items()]
    return shared + [Pass((store,), None) for store in plan.stores() if store.config.temporary]


def mentioned(arguments: Iterable[str]) -> list[Plan]:
    """The plans of the datasets that a command line of Snakemake is about: results, files under work/, or the jobs that
    it hands to another machine (``RULE:dataset=demo,shard=00000``)."""
    pattern = rf"(?:^|[ /])(?:{RESULTS}|{WORK})/({DATASET})(?:[ /]|$)|dataset=({DATASET})"
    names = {a or b for argument in arguments for a, b in re.findall(pattern, argument)} or {DEFAULT}
    found = [plans.of(name) for name in sorted(names) if config_path(name).is_file()]
    return list(dict.fromkeys(plan for asked in found for plan in (*asked.needs, asked)))


def _missing(plan: Plan, store: Store, shard: int) -> bool:
    """Whether somebody needs rows that are not there; temporary ones are needed while what reads them is missing."""
    path = str(manifest_path(store.folder, shard))
    if os.path.exists(path):
        return False
    if not store.config.temporary:
        return True
    readers = [other for other in plan.stores() if path in other.inputs(shard)]
    runs = [run for run in plan.runs() if store.name in (s.name for s in run.stores.values())]
    return any(_missing(plan, r, shard) for r in readers) or any(not os.path.exists(r.summary) for r in runs)


def _short(name: str) -> str:
    """`name`, or of one that is too long for a file its begin and a digest of all of it."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 9]}_{digest(name)[:8]}"


def _place(store: Store) -> str:
    return f"{WORK}/{{dataset}}/features/{store.name}"
