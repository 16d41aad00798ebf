"""Many trainings in one job, one to a core: forked, so that they share the features that were read once.

A small head does not fill two cores, and its start (imports, reading features) costs more than its training; so a job
reads once and each training gets a process of its own with one thread. What its parent had read is shared memory to it.
Where there is no such fork (other systems, features on a GPU) they run one after the other with all threads.

    for job, found in side_by_side(jobs, train, workers=2): ...      # found: what train(job) returned, or its error
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from features.errors import FramepoolError

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
            yield job, _tried(work, job)
        return
    todo, running = list(reversed(jobs)), dict[Any, tuple[T, BaseProcess]]()
    try:
        while todo or running:
            while todo and len(running) < workers:
                job = todo.pop()
                connection, process = _started(work, job)
                running[connection] = job, process
            for ready in wait(list(running)):
                job, process = running.pop(ready)
                yield job, _received(ready, process)  # type: ignore[arg-type]
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _tried(work: Callable[[T], R], job: T) -> R | FramepoolError:
    try:
        return work(job)
    except FramepoolError as error:
        return error


def _started(work: Callable[[T], R], job: T) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, job, theirs, os.getpid()))
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the other threads of the parent wait for work
        process.start()
    theirs.close()
    return ours, process


def _child(work: Callable[[T], R], job: T, answer: Connection, parent: int) -> None:
    import torch

    from extract.decoders import die_with_parent

    die_with_parent(signal.SIGTERM, parent)
    # Also makes torch's pool, which the fork broke, anew. Left to the first threads that ask for it, autograd's among
    # them, one may find none ("Invalid thread pool!") and abort.
    torch.set_num_threads(1)
    answer.send(_tried(work, job))


def _received(answer: Connection, process: BaseProcess) -> Any:
    try:
        return answer.recv()
    except EOFError:
        process.join()
        return FramepoolError(
            "a training ended without a word", got=f"exit code {process.exitcode}", fix="run it again"
        )
    finally:
        answer.close()
        process.join()
