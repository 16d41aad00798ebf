"""Many trainings in one job, one to a core: forked, so that they share the features that were read once.

A small head does not fill two cores, and its start (imports, reading features) costs more than its training; so a job
reads once and each training gets a process of its own with one thread. What its parent had read is shared memory to it.
Where there is no such fork (other systems, features on a GPU) they run one after the other with all threads.

    for job, found in side_by_side(jobs, train, workers=2): ...      # found: what train(job) returned, or its error
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait
from typing import Any, TypeVar

from features.errors import FramepoolError
from pipelines.forked import Forked, tried

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(jobs: Sequence[T], work: Callable[[T], R], workers: int) -> Iterator[tuple[T, R | FramepoolError]]:
    """Each of `jobs` with what `work` makes of it, as they end; at most `workers` at a time, begun in this order.

    With more than one worker each runs in a child of its own, a single one too, for torch cannot be forked once it has
    trained in the parent; there torch uses one thread. A child that is killed counts as an error. Whoever stops
    listening ends the children.
    """
    if workers == 1 or sys.platform != "linux":
        for job in jobs:
            yield job, tried(partial(work, job))
        return
    todo, running = list(reversed(jobs)), dict[Any, tuple[T, Forked[R]]]()
    try:
        while todo or running:
            while todo and len(running) < workers:
                job = todo.pop()
                child = Forked(partial(_alone, work, job), "a training")
                running[child.pipe] = job, child
            for ready in wait(list(running)):
                job, child = running.pop(ready)
                yield job, child.answer()
    finally:
        for _, child in running.values():
            child.end()
        for _, child in running.values():
            child.wait()


def _alone(work: Callable[[T], R], job: T) -> R:
    import torch

    # Also makes torch's pool, which the fork broke, anew. Left to the first threads that ask for it, autograd's among
    # them, one may find none ("Invalid thread pool!") and abort.
    torch.set_num_threads(1)
    return work(job)
