"""score: labels for the videos of folders, tars and lists, by a trained run.

framepool score work/ucf6/runs/RUN/seed0 archive.tar --out scores.parquet
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain

from extract.progress import Progress
from extract.sources import Clip, walk
from extract.span import Span
from features.errors import UserError
from features.outcome import Outcome
from pipelines.commands.stage_one import CACHE
from pipelines.scoring.keep import Keep
from pipelines.scoring.machine import Done, Machine, Options
from pipelines.scoring.output import Output
from pipelines.scoring.seen import Seen


def score(args: Namespace) -> None:
    """Score what is not scored yet; prints how many, their outcomes, and where the scores are."""
    start = time.monotonic()
    options = _options(args)
    for source in args.source:
        walk(source)  # what cannot be read is said before anything is written
    with ExitStack() as stack:
        machine = Machine(options)  # also where others do the work: what is wrong with a run is said before they start
        identity = {
            "runs": {run.name: run.digest for run in machine.runs},
            "top": options.top,
            "logits": options.logits,
            "window_s": options.window_s,
            "stride_s": options.stride_s,
            "features": os.path.abspath(args.keep_features) if args.keep_features else "",
            "keys": 2,  # other versions knew a video by other names
        }
        output = Output(args.out, identity, windows=options.window is not None, logits=options.logits)
        stack.enter_context(output)
        before = output.videos
        own = [*output.paths, CACHE, *([args.keep_features] if args.keep_features else [])]
        walks = [walk(source, args.root, args.only, own) for source in args.source]
        clips = _unseen(chain.from_iterable(walks), output.seen)
        if args.keep_features is not None:
            output.keep = stack.enter_context(Keep(args.keep_features, machine, output)).part
        outcomes = Counter[str]()
        progress = Progress("score", None, 0)
        for done in _scored(args, machine, clips, stack):
            output.add(done)
            outcomes[done.rows[0]["outcome"]] += 1
            progress.add(videos=1)
        output.commit()
        progress.close()
    said = ", ".join(f"{n} {name}" for name, n in outcomes.most_common()) or "nothing new"
    seconds = time.monotonic() - start
    print(f"{args.out}: {sum(outcomes.values())} videos scored in {seconds:.1f} s ({said}); {before} were there before")


def _options(args: Namespace) -> Options:
    if args.stride is not None and args.window is None:
        raise UserError("a stride without a window", where="--stride", fix="give --window too")
    if args.keep_features is not None and (args.window is not None or args.scheduler or args.workers):
        got = "--window" if args.window is not None else "--scheduler or --workers"
        raise UserError("features are kept of whole videos, by one process", where="--keep-features", got=got)
    stride_s = args.stride if args.stride is not None else args.window
    return Options(
        runs=tuple({run.resolve(): run for run in reversed([args.run_folder, *args.also])}.values())[::-1],
        threads=args.threads,
        cache=CACHE,
        top=args.top,
        logits=args.logits,
        window_s=args.window,
        stride_s=stride_s,
        keep=args.keep_features is not None,
    )


def _unseen(clips: Iterable[Clip], seen: Seen) -> Iterator[Clip]:
    """Those that are not scored yet, each once, and again where it failed and has changed since: a list may name one
    twice, and of two members of a tar that have one name the later is refused."""
    now = Seen()
    for clip in clips:
        if isinstance(clip.media, Span):
            here = clip.placed
            if here in now:  # the tar was named before, by itself or with its folder
                continue
            now.add(here)
            if clip.key in now:
                reason = f"a member before has its name; this one is at byte {clip.media.start}"
                clip = replace(clip, media=None, refused=Outcome(outcome="refused", reason=reason))
        if clip.key in now:
            continue
        now.add(clip.key)
        if clip.key not in seen and (marked := clip.marked()).tried not in seen:
            yield marked


def _scored(args: Namespace, machine: Machine, clips: Iterator[Clip], stack: ExitStack) -> Iterator[Done]:
    if args.scheduler is None and args.workers is None:
        first = next(clips, None)
        if first is None:
            return
        stack.enter_context(machine)
        yield from machine.score(_chained(first, clips))
        return
    from pipelines.cluster import connected, score_on

    options = machine.options
    if args.workers is not None:
        options = replace(options, threads=max(1, args.threads // args.workers))
    client = stack.enter_context(connected(args.scheduler, args.workers))
    yield from score_on(client, machine, options, clips)


def _chained(first: Clip, rest: Iterator[Clip]) -> Iterator[Clip]:
    yield first
    yield from rest
