"""Scoring and extraction on a Dask cluster: one that runs already, or one of local processes.

A task is a shard: 64 clips to score, or a shard of a store. It may be run twice and does no harm: a store is published
by a rename, and scores are written by the one who asked. The model lives in a plugin of each worker and is loaded once.
A worker that dies costs a retry. Clips whose worker died twice are asked for again one by one, with nothing beside
them; one whose worker dies twice then is to blame, and that is its outcome.

    with connected(None, workers=2) as client:
        for done in score_on(client, machine, machine.options, clips): ...

Workers need this package, the same files under the same paths, and the folder that the command runs in.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import dask
from distributed import CancelledError, Client, KilledWorker, LocalCluster, WorkerPlugin, get_worker
from distributed.comm.addressing import get_address_host_port
from distributed.comm.core import CommClosedError

from extract.config import Imported
from extract.sources import Clip
from features.errors import Busy, FramepoolError, UserError, printable
from features.journal import finished
from features.outcome import Outcome
from features.recipe import digest
from features.store import partial_path
from pipelines import plan as plans
from pipelines.config import config_path
from pipelines.plan import Store
from pipelines.scoring.machine import BLOCK, Done, Machine, Options
from pipelines.waves import AGAIN, in_waves

TRIES: Final = 2
HERE: Final = "127.0.0.1"
CONNECT_S: Final = 20
REGISTER_S: Final = 330  # a scheduler gives up a silent worker after 300, by default
HELD_S: Final = 3600.0  # what a shard may take a worker that was cut off and is at it still
_OWN: Final[Any] = {"set_as_default": False}  # what else the process computes with Dask stays where it was
_ONE_TASK = threading.Lock()  # of a worker, whoever asks: each works in the folder of its own command


@contextmanager
def connected(scheduler: str | None, workers: int | None) -> Iterator[Any]:
    """A client of the cluster at `scheduler`, or of one of `workers` processes here; says where its dashboard is.

    Raises `UserError` where nobody answers.
    """
    settings = {
        "distributed.scheduler.allowed-failures": TRIES - 1,  # of a cluster of ours; others have their own
        "distributed.worker.daemon": False,  # workers have decoder processes
        "distributed.comm.timeouts.connect": CONNECT_S,
    }
    with dask.config.set(settings):
        if scheduler is None:
            place = {"host": HERE, "dashboard_address": f"{HERE}:0"}
            cluster = LocalCluster(n_workers=workers, threads_per_worker=1, **place)  # type: ignore[no-untyped-call]
            try:
                with Client(cluster, **_OWN) as client, _connection():  # type: ignore[no-untyped-call]
                    _tell(client)
                    yield client
            finally:
                cluster.close()
            return
        try:
            get_address_host_port(scheduler)  # a client of no address says it late
            client = Client(scheduler, timeout=CONNECT_S, **_OWN)  # type: ignore[no-untyped-call]
        except (OSError, ValueError, TimeoutError) as error:
            fix = "give the address that the scheduler printed, such as tcp://10.0.0.1:8786"
            raise UserError("no scheduler answers", where=printable(scheduler), got=error, fix=fix) from None
        with client, _connection():
            _tell(client)
            yield client


@contextmanager
def _connection() -> Iterator[None]:
    """One line where the scheduler goes away, whatever the client was about to ask of it."""
    try:
        yield
    except (CommClosedError, TimeoutError, CancelledError) as error:
        raise FramepoolError("the scheduler is gone", got=error, fix=AGAIN) from None


def _tell(client: Any) -> None:
    count = len(client.scheduler_info(n_workers=-1)["workers"])
    print(f"{count} workers; dashboard: {client.dashboard_link}", file=sys.stderr, flush=True)


class Work(WorkerPlugin):
    """What a worker keeps between tasks: the folder that it works in, and with `options` a loaded `Machine`."""

    def __init__(self, name: str, folder: Path, options: Options | None) -> None:
        self.name, self._folder, self._options = name, folder, options
        self._machine: Machine | None = None

    def setup(self, worker: Any) -> None:
        # Processes of a nanny may have no children, lest they outlive it; decoders end with their parent by themselves.
        multiprocessing.current_process()._config.pop("daemon", None)  # type: ignore[attr-defined]

    async def teardown(self, worker: Any) -> None:
        """Off the worker's event loop: another command's task may take long, and a worker that does not answer is given
        up."""
        await asyncio.to_thread(self._left)

    def _left(self) -> None:
        with _ONE_TASK:
            self._close()

    def _close(self) -> None:
        if self._machine is not None:
            self._machine.__exit__(None, None, None)
            self._machine = None

    def score(self, clips: Sequence[Clip]) -> list[Done]:
        """One task at a time, whatever the threads of the worker; a machine that failed is not used again."""
        with _ONE_TASK:
            os.chdir(self._folder)
            if self._machine is None and self._options is not None:
                self._machine = Machine(self._options).__enter__()
            try:
                return list(self._machine.score(clips)) if self._machine is not None else []
            except BaseException:
                self._close()
                raise


def _register(client: Any, work: Work) -> None:
    """On every worker; those that come later get it too. One that has just been cut off stands in the way until the
    scheduler has given it up."""
    deadline = time.monotonic() + REGISTER_S
    while True:
        try:
            client.register_plugin(work)
            return
        except CommClosedError:
            if client.status != "running" or time.monotonic() > deadline:
                raise
            time.sleep(1)


def _score(name: str, clips: Sequence[Clip]) -> list[Done]:
    work: Any = get_worker().plugins[name]
    found: list[Done] = work.score(clips)
    return found


def score_on(client: Any, machine: Machine, options: Options, clips: Iterable[Clip]) -> Iterator[Done]:
    """Every clip once, in the order in which shards come back. `machine` says what is said of a clip that failed."""
    name = f"framepool-{uuid4().hex}"  # another command may score the same there
    _register(client, Work(name, Path.cwd(), options))
    clips = iter(clips)
    shards = iter(lambda: list(islice(clips, BLOCK)), [])
    suspects: list[Clip] = []
    try:
        for shard, found in in_waves(client, lambda shard: (_score, name, shard), shards, _shard_key):
            if isinstance(found, KilledWorker):
                suspects += shard
            else:
                yield from found
        for clip in suspects:
            for _, found in in_waves(client, lambda shard: (_score, name, shard), iter([[clip]]), _shard_key):
                yield from [machine.without(clip, _killed(found))] if isinstance(found, KilledWorker) else found
    finally:
        with suppress(Exception):  # of a scheduler that is gone
            client.unregister_worker_plugin(name)  # whose decoders would keep a worker from ending


def _killed(error: KilledWorker) -> Outcome:
    """After as many tries as the scheduler allows: two of a cluster of ours."""
    return Outcome(outcome="decoder_killed", reason=_died(error))


def _died(error: KilledWorker) -> str:
    return f"its worker died {error.allowed_failures + 1} times"


def _shard_key(shard: Sequence[Clip]) -> str:
    return f"score-{digest([clip.key.hex() for clip in shard])[:24]}"


@dataclass(frozen=True)
class Held:
    """Why a shard was not made: who holds it, in words."""

    by: str


def _extract(
    folder: Path, dataset: str, token: str, extractors: Sequence[str], split: str | None, shard: int, threads: int
) -> Any:
    from pipelines.commands.stage_one import extracted

    with _ONE_TASK:
        if Path.cwd() != folder:
            os.chdir(folder)
            plans.of.cache_clear()
        try:
            return extracted(_asked(dataset, token, extractors, split), shard, threads)
        except Busy as error:
            return Held(str(error))


def _asked(dataset: str, token: str, extractors: Sequence[str], split: str | None) -> list[Store]:
    """The stores as they are where the command runs, though this process may have read their config long before."""
    for read_again in (False, True):
        if read_again:
            plans.of.cache_clear()
        with nullcontext() if read_again else suppress(UserError):
            stores = [plans.of(dataset).store(name, split) for name in extractors]
            if _token(stores) == token:
                return stores
    fix = "give workers the files and the version of framepool that the command has"
    raise UserError("a worker has another config, list, weights or code", where=config_path(dataset).resolve(), fix=fix)


def _token(stores: Sequence[Store]) -> str:
    """Changes when the list, the config, a recipe of the stores or a file of features that they import does."""
    plan = stores[0].plan
    imported = [plan.state(store.config.path) for store in stores if isinstance(store.config, Imported)]
    return digest([plan.token, plan.config.model_dump(mode="json"), [store.digest for store in stores], imported])


def extract_on(client: Any, stores: Sequence[Store], shards: Iterable[int], threads: int) -> Iterator[list[str]]:
    """A line for each store of each shard. One that somebody else holds is asked for again when the others are done,
    until none has come free for an hour. Raises `FramepoolError` at the end where a shard's worker died twice, and
    `Busy` where one is still held."""
    plan = stores[0].plan
    split = next((store.split for store in stores if store.split), None)
    names = [store.extractor for store in stores]
    token = _token(stores)
    here = Path.cwd()
    _register(client, Work(f"framepool-{uuid4().hex}", here, None))

    def call(shard: int) -> tuple[Any, ...]:
        return _extract, here, plan.dataset, token, names, split, shard, threads

    dead: list[int] = []
    why = ""
    asked = list(shards)
    first = asked[:1] if any(getattr(store.config, "precision", "") == "int8" for store in stores) else []
    # what int8 is calibrated on is there before the others ask for it
    waves, by, moved = deque(filter(None, [first, asked[len(first) :]])), dict[int, str](), time.monotonic()
    while waves and time.monotonic() - moved < HELD_S:
        fallen, held = list[int](), list[int]()
        for shard, found in in_waves(
            client, call, iter(waves.popleft()), lambda shard: f"extract-{plan.dataset}-{shard}"
        ):
            if isinstance(found, Held):  # a worker has waited for it, so this does not turn fast
                held.append(shard)
                by[shard] = found.by
                continue
            moved = time.monotonic()
            if isinstance(found, KilledWorker):
                fallen.append(shard)
                why = why or _died(found)
            else:
                yield found
        if len(fallen) > 1:  # one may only have waited behind another's: each alone
            waves.extend([shard] for shard in fallen)
        else:
            dead += fallen
        if held:
            waves.append(held)
    if dead:
        fix = f"look at the workers' logs, or run `framepool extract ... --shard {dead[0]}` here"
        where = f"{plan.dataset}: shards {', '.join(map(str, dead[:10]))}"
        done = finished(partial_path(stores[0].folder, dead[0]))
        open_ = [video.id for n, video in enumerate(plan.shard_videos(dead[0])) if n not in done]
        left = f"the first that are not finished: {', '.join(map(printable, open_[:threads]))}"
        got = f"{why}; {left if open_ else 'all its videos are finished'}"
        raise FramepoolError("workers died", where=where, got=got, fix=fix)
    if todo := [shard for wave in waves for shard in wave]:
        where, fix = f"{plan.dataset}: shards {', '.join(map(str, todo[:10]))}", "the same command goes on"
        raise Busy("somebody else is at work on them", where=where, got=by.get(todo[0], why), fix=fix)
