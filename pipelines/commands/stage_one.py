"""index, render, extract, gather, verify: from videos to complete stores.

framepool index ucf6 && framepool extract ucf6 --extractor rgb && framepool verify ucf6
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from features import videolist
from features.atomic import make_folder, write_json
from features.errors import DamagedStore, FramepoolError, TooManyBad, UserError, printable
from features.manifest import Manifest, read_manifest
from features.outcome import FAILED, Outcome, counts
from features.recipe import digest
from pipelines import plan as plans
from pipelines.config import Rendered, config_path
from pipelines.datasets import demo
from pipelines.plan import Store

CACHE = plans.WORK / "cache"  # converted networks, shared by all datasets


def index(args: Namespace) -> None:
    """Write the list to work/<dataset>/videos.csv, and print it in short."""
    from pipelines.sizes import store_bytes

    plan = plans.of(args.dataset)
    videos = plan.videos
    make_folder(plan.work)
    videolist.save(videos, plan.list_file)
    print(f"{args.dataset}: {len(videos.videos)} videos, {len(videos.classes)} classes, {plan.shard_count} shards")
    for number, split in enumerate(videos.splits):
        parts = Counter(v.splits[number] for v in videos.videos)
        print(f"  split {split}: {parts['train']} train, {parts['test']} test, {parts['']} unused")
    for problem in videolist.problems(videos):
        print(f"  {printable(problem)}")
    for store in plan.stores():
        print(f"  store {store.name}: {store_bytes(store)}")


def render(args: Namespace) -> None:
    """Render the clips, those that are missing; then write down that they are all there."""
    plan = plans.of(args.dataset)
    source = plan.config.videos
    if not isinstance(source, Rendered):
        raise UserError("nothing to render", where=config_path(args.dataset), got=f"videos of format {source.format}")
    count = source.count
    demo.render(make_folder(plan.root), count, workers=args.threads)
    write_json(plan.work / "rendered.json", {"count": count, "numerics": demo.NUMERICS})


def extract(args: Namespace) -> None:
    """One shard of each extractor, or all shards and their summary."""
    plan = plans.of(args.dataset)
    for name in args.extractor:
        store = plan.store(name, args.split)
        if args.shard is None:
            for shard in range(plan.shard_count):
                _extract(store, shard, args.threads)
            _gather(store)
        elif args.shard in range(plan.shard_count):
            _extract(store, args.shard, args.threads)
        else:
            raise UserError(
                "unknown shard", where=args.dataset, expected=f"0 to {plan.shard_count - 1}", got=args.shard
            )


def gather(args: Namespace) -> None:
    """See `_gather`."""
    _gather(plans.of(args.dataset).store(args.extractor, args.split))


def verify(args: Namespace) -> None:
    """Every shard of every store of the config; with `--repair` extract again what is damaged or missing."""
    from features.store import retire, verify_shard

    plan = plans.of(args.dataset)
    damaged = 0
    for store in plan.stores():
        rows = 0
        for shard in range(plan.shard_count):
            try:
                rows += verify_shard(store.folder, shard).rows
            except FramepoolError as error:
                print(f"framepool: {error}", file=sys.stderr)
                damaged += 1
                if args.repair:
                    retire(store.folder, shard)
                    rows += _extract(store, shard, args.threads).rows
        print(f"{store.name}: {plan.shard_count} shards, {rows} rows")
    if damaged and not args.repair:
        fix = f"run `framepool verify {args.dataset} --repair`"
        raise DamagedStore("shards damaged or missing", where=plan.work / "features", got=damaged, fix=fix)
    print(f"{args.dataset}: " + (f"{damaged} shards repaired" if damaged else "all shards match their manifests"))


def in_words(outcomes: Iterable[Outcome]) -> str:
    """Such as ``250 ok, 6 partial``."""
    return ", ".join(f"{n} {name}" for name, n in counts(outcomes).items())


def _extract(store: Store, shard: int, threads: int) -> Manifest:
    from extract.shard import Item, Task, extract_shard

    plan, config = store.plan, store.plan.config.extractors[store.extractor]
    run = store.trained_by
    if run is not None and isinstance(store.weights, Path) and not store.weights.exists():
        fix = f"run `framepool train {plan.dataset} --head {run.head} --split {run.split}` first"
        raise UserError("weights are not trained yet", where=store.weights, fix=fix)
    if plan.rendered and not Path(plan.annotations[0]).exists():
        raise UserError("clips are not there", where=plan.root, fix=f"run `framepool render {plan.dataset}` first")
    items = tuple(Item(v.id, v.path) for v in plan.shard_videos(shard))
    task = Task(
        extractor=store.extractor,
        config=config,
        recipe=store.recipe,
        weights=store.weights,
        shard=shard,
        items=items,
        root=plan.root,
        store=store.folder,
        cache=CACHE,
    )
    manifest = extract_shard(task, workers=threads)
    print(f"{store.name} shard {shard}: {manifest.rows} rows; {in_words(manifest.outcomes)}")
    return manifest


def _gather(store: Store) -> None:
    """Write the store's summary: outcomes, rows, bytes, statistics, and every video that is not `ok`.

    Raises `TooManyBad` where more than the config's share failed, `FramepoolError` where a shard is missing or the
    shards do not belong together.
    """
    plan = store.plan
    manifests = [read_manifest(store.folder, shard) for shard in range(plan.shard_count)]
    first = manifests[0]
    for manifest in manifests:
        if (manifest.digest, manifest.facts) != (store.digest, first.facts):
            raise FramepoolError(
                "shards of different making in one store",
                where=f"{store.folder}: shard {manifest.shard}",
                expected=first.facts,
                got=manifest.facts,
                fix="remove the store's folder to make it anew",
            )
    outcomes = [o for m in manifests for o in m.outcomes]
    ids = [i for m in manifests for i in m.ids]
    bad = [(i, o) for i, o in zip(ids, outcomes, strict=True) if o.outcome in FAILED]
    share = len(bad) / max(1, len(outcomes))
    if share > plan.config.max_bad_share:
        lines = [f"  {printable(i)}: {o.outcome}: {printable(o.reason)}" for i, o in bad[:20]]
        more = [f"  ... and {len(bad) - 20} more"] if len(bad) > 20 else []
        print("\n".join([f"{store.name}: {in_words(outcomes)}", *lines, *more]), file=sys.stderr)
        expected = f"at most {plan.config.max_bad_share:.1%}"
        fix = "mend the files, or raise max_bad_share in the config"
        raise TooManyBad("too many videos failed", where=store.folder, expected=expected, got=f"{share:.1%}", fix=fix)
    summary = {
        "store": store.name,
        "digest": store.digest,
        "contents": digest([m.files for m in manifests]),
        "facts": first.facts,
        "outcomes": counts(outcomes),
        "rows": sum(m.rows for m in manifests),
        "bytes": sum(m.bytes for m in manifests),
        "not_ok": [{"id": i, **o.to_json()} for i, o in zip(ids, outcomes, strict=True) if o.outcome != "ok"],
    }
    write_json(store.folder / "store.json", summary)
    print(f"{store.name}: {summary['rows']} rows, {summary['bytes']} bytes; {in_words(outcomes)}")
