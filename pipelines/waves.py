"""Tasks to a Dask cluster a few at a time, and what they give as it comes. Light: a worker imports nothing more for it.

for shard, found in in_waves(client, lambda shard: (function, shard), iter(shards), str): ...
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from distributed import KilledWorker, as_completed

from features.errors import FramepoolError, printable

AGAIN: Final = "start it again and run the same command: what is finished is kept"
ASKED_S: Final = 5.0
WAITING: Final = 2  # tasks a worker beside the one that it runs


@dataclass(frozen=True)
class Failed:
    """Why a task gave nothing, in words: an error of its own may not survive the journey, and its task never ends."""

    what: str


def _task(function: Any, *arguments: Any) -> Any:
    """What `function` gives, or `Failed`."""
    try:
        return function(*arguments)
    except Exception as error:
        return Failed(printable(error if isinstance(error, FramepoolError) else repr(error)))


def in_waves(client: Any, call: Any, shards: Iterator[Any], name: Any) -> Iterator[tuple[Any, Any]]:
    """(shard, what its task gave or the `KilledWorker`), a few tasks a worker at a time, so that a long list costs no
    memory. Raises `FramepoolError` where a task fails otherwise, or the scheduler is gone."""
    open_: dict[Any, Any] = {}
    own = uuid4().hex  # a scheduler gives two tasks of one key the result of the first
    running: Any = as_completed(loop=client.loop, raise_errors=False)  # type: ignore[no-untyped-call]

    workers, asked = 1, -math.inf

    def send() -> None:
        nonlocal workers, asked
        if time.monotonic() > asked + ASKED_S:  # the answer names every worker
            workers, asked = max(1, len(client.scheduler_info(n_workers=-1)["workers"])), time.monotonic()
        while len(open_) < (1 + WAITING) * workers and (shard := next(shards, None)) is not None:
            future = client.submit(_task, *call(shard), key=f"{name(shard)}-{own}", pure=False)
            open_[future] = shard
            running.add(future)

    try:
        send()
        while open_:
            future = next(running)
            shard = open_.pop(future)
            if future.status not in ("finished", "error"):
                raise FramepoolError("the scheduler is gone", got=future.status, fix=AGAIN)
            error = future.exception() if future.status == "error" else None
            if error is not None and not isinstance(error, KilledWorker):
                raise error
            found = future.result() if error is None else error
            if isinstance(found, Failed):
                raise FramepoolError("a worker failed", got=found.what, fix="the same command goes on")
            yield shard, found
            future.release()
            send()
    finally:
        with suppress(Exception):  # of a scheduler that is gone
            client.cancel(list(open_), force=True)
