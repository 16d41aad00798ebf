"""index, render, extract, gather, verify: from videos to complete stores.

framepool index ucf6 && framepool extract ucf6 --extractor rgb && framepool verify ucf6
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from extract.config import Networked
from features import videolist
from features.atomic import LOCK_WAIT_S, Lock, make_folder, remove, write_bytes, write_json
from features.errors import DamagedStore, FramepoolError, TooManyBad, UserError, printable
from features.manifest import Manifest, contents, manifest_path, parse_manifest, read_manifest, shards
from features.outcome import FAILED, Outcome, counts
from pipelines import plan as plans
from pipelines.config import Rendered, config_path
from pipelines.made_of import of_recipe
from pipelines.missing import check_videos
from pipelines.plan import Store

if TYPE_CHECKING:
    from extract.shard import Task
    from heads.kinds import HeadConfig

CACHE = plans.WORK / "cache"  # converted networks, shared by all datasets


def index(args: Namespace) -> None:
    """Write the list to work/<dataset>/videos.csv, and print it in short."""
    from pipelines.sizes import check_budget, store_size, total_bytes

    plan = plans.of(args.dataset)
    videos = plan.videos
    make_folder(plan.work)
    videolist.save(videos, plan.list_file)
    print(f"{args.dataset}: {len(videos.videos)} videos, {len(videos.classes)} classes, {plan.shard_count} shards")
    for number, split in enumerate(videos.splits):
        parts = Counter(v.splits[number] for v in videos.videos)
        print(f"  split {split}: {parts['train']} train, {parts['test']} test, {parts['']} unused")
    if not plan.rendered and not plan.config.generated and not plan.root.is_dir():
        print(f"  the folder of videos is not there: {printable(plan.root)}")
    for problem in videolist.problems(videos):
        print(f"  {printable(problem)}")
    for name, head in plan.config.heads.items():
        _check_head(f"{config_path(args.dataset)}: $.heads.{name}", head, videos.multi_label)
    sizes = {store.name: store_size(store) for store in plan.all_stores()}
    for name, size in sizes.items():
        print(f"  store {name}: {size.text}")
    budget = plan.config.disk_gb
    allowed = f", disk_gb: {budget:g}" if budget else ""
    print(f"  all stores: about {total_bytes(sizes) / 1e9:,.2f} GB before compression{allowed}")
    check_budget(plan, sizes)


def _check_head(where: str, head: HeadConfig, multi_label: bool) -> None:
    """What it cannot learn from, and a name that no library knows, are said before any video is decoded for it."""
    from extract.networks import NetworkError, check_name
    from heads.config import BaseConfig, refuse_one_label

    if not isinstance(head, BaseConfig):
        return
    if multi_label:
        refuse_one_label(head, where)
    if head.cnn is not None:
        network = getattr(head, head.cnn)
        try:
            check_name(network.name, getattr(network, "library", "framepool"))
        except NetworkError as error:
            raise UserError(f"{error} ({where}.{head.cnn})") from None


def render(args: Namespace) -> None:
    """Render the clips, those that are missing; then write down that they are all there."""
    plan = plans.of(args.dataset)
    source = plan.config.videos
    if not isinstance(source, Rendered):
        raise UserError("nothing to render", where=config_path(args.dataset), got=f"videos of format {source.format}")
    count = source.count
    plan.renderer.render(make_folder(plan.root), count, workers=args.threads)
    write_json(plan.work / "rendered.json", {"count": count, "numerics": plan.renderer.NUMERICS})


def extract(args: Namespace) -> None:
    """One shard of the extractors, or all shards and their summaries; videos are decoded once for all of them."""
    plan = plans.of(args.dataset)
    stores = [plan.store(name, args.split) for name in dict.fromkeys(args.extractor)]
    for store in stores:
        if not store.config.store:
            where = f"{config_path(args.dataset)}: $.extractors.{store.extractor}"
            fix = "extract what reads it, or remove store: false"
            raise UserError("extractor that is not stored", where=where, got="store: false", fix=fix)
    stores.sort(key=_depth)
    if args.shard is not None and args.shard not in range(plan.shard_count):
        raise UserError("unknown shard", where=args.dataset, expected=f"0 to {plan.shard_count - 1}", got=args.shard)
    numbers = range(plan.shard_count) if args.shard is None else [args.shard]
    check_videos(plan, stores)
    if args.shard is None and plan.config.disk_gb:
        from pipelines.sizes import check_budget

        check_budget(plan)  # of a shard the workflow has asked
    if args.scheduler is not None or args.workers is not None:
        from pipelines.cluster import connected, extract_on

        threads = max(1, args.threads // (args.workers or 1))
        with connected(args.scheduler, args.workers) as client:
            for lines in extract_on(client, stores, numbers, threads):
                print("\n".join(lines), flush=True)
    else:
        for shard in numbers:
            print("\n".join(extracted(stores, shard, args.threads)), flush=True)
    if args.shard is None:
        for store in stores:
            gathered(store)


def gather(args: Namespace) -> None:
    """See `gathered`."""
    gathered(plans.of(args.dataset).store(args.extractor, args.split))


def verify(args: Namespace) -> None:
    """Every shard of every store of the config; with `--repair` extract again what is damaged or missing."""
    from features.store import verify_shard

    plan = plans.of(args.dataset)
    if args.repair:
        check_videos(plan, plan.stores())
    damaged = 0
    for store in sorted(plan.stores(), key=_depth):
        rows = 0
        for shard in range(plan.shard_count):
            try:
                rows += of_recipe(store, verify_shard(store.folder, shard)).rows
            except FramepoolError as error:
                if store.config.temporary and not manifest_path(store.folder, shard).is_file():
                    continue  # read and removed
                print(f"framepool: {error}", file=sys.stderr)
                damaged += 1
                if args.repair:
                    rows += _repaired(store, shard, args.threads).rows
        print(f"{store.name}: {plan.shard_count} shards, {rows} rows")
    if damaged and not args.repair:
        fix = f"run `framepool verify {args.dataset} --repair`"
        raise DamagedStore("shards damaged or missing", where=plan.work / "features", got=damaged, fix=fix)
    print(f"{args.dataset}: " + (f"{damaged} shards repaired" if damaged else "all shards match their manifests"))


def _repaired(store: Store, shard: int, threads: int) -> Manifest:
    """A shard made again, and what was removed that it reads for as long as that takes."""
    from features.store import retire

    def retired(one: Store) -> None:
        with Lock(make_folder(one.folder) / f"{shard:05d}.lock", wait_s=LOCK_WAIT_S):
            retire(one.folder, shard)

    removed = _removed(store, shard)
    if removed:
        _extract(removed, shard, threads)
    retired(store)
    manifest = _extract([store], shard, threads)[0]
    for source in removed:
        retired(source)
    return manifest


def _removed(store: Store, shard: int) -> list[Store]:
    """The stores that a shard reads, itself or through others, and that have it no more; in the order of reading."""
    source = store.source
    if source is None or (source.config.store and manifest_path(source.folder, shard).is_file()):
        return []
    return [*_removed(source, shard), *([source] if source.config.store else [])]


def in_words(outcomes: Iterable[Outcome]) -> str:
    """Such as ``250 ok, 6 partial``."""
    return ", ".join(f"{n} {name}" for name, n in counts(outcomes).items())


def _depth(store: Store) -> int:
    """How many stores stand between it and the video."""
    return 0 if store.source is None else 1 + _depth(store.source)


def extracted(stores: Sequence[Store], shard: int, threads: int) -> list[str]:
    """Make a shard of each store; a line about each."""
    manifests = _extract(stores, shard, threads)
    return [
        f"{store.name} shard {shard}: {manifest.rows} rows; {in_words(manifest.outcomes)}"
        for store, manifest in zip(stores, manifests, strict=True)
    ]


def _extract(stores: Sequence[Store], shard: int, threads: int) -> list[Manifest]:
    from extract.shard import extract_shards

    plans.Plan.stat.cache_clear()  # a Dask worker lives long
    tokens = [store.plan.shard_token(shard, store.name) for store in stores]  # so that what changes meanwhile shows
    manifests = extract_shards([task_of(store, shard) for store in stores], workers=threads)
    for store, token, manifest in zip(stores, tokens, manifests, strict=True):
        make_folder(store.made_with(shard).parent)
        write_bytes(store.made_with(shard), token.encode())
        if store.config.temporary:
            write_json(store.was(shard), manifest.to_json())
    return manifests


def task_of(store: Store, shard: int) -> Task:
    """What makes one shard of a store."""
    from extract.fingerprint import Item
    from extract.shard import Task

    plan, config, run = store.plan, store.config, store.trained_by
    if plan.rendered and not Path(plan.annotations[0]).exists():
        raise UserError("clips are not there", where=plan.root, fix=f"run `framepool render {plan.dataset}` first")
    if run is not None and isinstance(store.weights, Path) and not store.weights.exists():
        fix = f"run `framepool train {run.plan.dataset} --head {run.head} --split {run.split}` first"
        raise UserError("weights are not trained yet", where=store.weights, fix=fix)
    source: Path | Task | None = None
    if store.source is not None:
        source = store.source.folder if store.source.config.store else task_of(store.source, shard)
    int8 = isinstance(config, Networked) and config.precision == "int8"
    first = plan.videos.videos[: config.calibration] if int8 else ()  # type: ignore[union-attr]
    items = [Item(v.id, "" if plan.generator else v.path) for v in plan.shard_videos(shard)]
    if (collection := store.collection) is not None:
        items = [Item(item.id, collection.place(item.id)) for item in items]
    return Task(
        extractor=store.extractor,
        config=config,
        recipe=store.recipe,
        weights=store.weights,
        shard=shard,
        items=tuple(items),
        root=plan.root if collection is None else collection.root,
        store=store.folder,
        cache=CACHE,
        source=source,
        calibration=tuple(Item(v.id, v.path) for v in first),
        generator=plan.generator,
        collection=collection,
        follows=store.waits_for_training,
    )


def _told(store: Store, shard: int) -> Manifest:
    """The manifest of a shard, or of temporary rows what is left of it."""
    gone = store.was(shard).is_file() and not manifest_path(store.folder, shard).is_file()
    return parse_manifest(store.was(shard)) if gone else read_manifest(store.folder, shard)


def gathered(store: Store) -> None:
    """Write the store's summary: outcomes, rows, bytes, and what the report says of it.

    Raises `TooManyBad` where more than the config's share failed, `FramepoolError` where a shard is missing or the
    shards do not belong together, `Busy` where somebody else is at it.
    """
    from features.store import retire
    from pipelines.report.stores import summed

    plan = store.plan
    manifests = [_told(store, shard) for shard in range(plan.shard_count)]
    first = manifests[0]
    for manifest in manifests:
        if of_recipe(store, manifest).facts != first.facts:
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
    for shard in shards(store.folder):
        if shard >= plan.shard_count:  # the list was longer, or shard_size smaller
            with Lock(store.folder / f"{shard:05d}.lock"):
                retire(store.folder, shard)
    for path in {*store.folder.glob("*.was.json")} - {store.was(shard) for shard in range(plan.shard_count)}:
        remove(path)
    summary = {
        "store": store.name,
        "digest": store.digest,
        "contents": contents(manifests),
        "facts": first.facts,
        "outcomes": counts(outcomes),
        "rows": sum(m.rows for m in manifests),
        "bytes": sum(m.bytes for m in manifests),
        "report": asdict(summed(store.name, manifests)),
    }
    with Lock(store.folder / "store.lock", LOCK_WAIT_S):
        write_json(store.folder / "store.json", summary)
    print(f"{store.name}: {summary['rows']} rows, {summary['bytes']} bytes; {in_words(outcomes)}")
