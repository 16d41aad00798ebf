"""train, evaluate, assemble: from complete stores to results/<dataset>.

framepool train ucf6 --head attention_cluster --split 1 && framepool assemble ucf6
"""

from __future__ import annotations

import json
import platform
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from features.atomic import LOCK_WAIT_S, Lock, write_json
from features.errors import FramepoolError, UserError, nearest
from features.videolist import VideoList
from pipelines import plan as plans
from pipelines.comparisons import Comparison
from pipelines.described import bring_weights, described
from pipelines.made_of import contents_of, freshen, made_of, stale
from pipelines.plan import Plan, Run, Store
from pipelines.side_by_side import side_by_side
from pipelines.sources import Ahead, from_disk, opened, reading_ahead

if TYPE_CHECKING:
    from heads.config import BaseConfig

PACKAGES = ("torch", "torchvision", "timm", "openvino", "av", "zarr", "numpy", "scikit-learn", "snakemake")


def train(args: Namespace) -> None:
    """Every seed of the heads on a split, one training a core; what is finished is not trained again.

    A training that fails does not stop the others; the error of the first is raised at the end.
    """
    plan = plans.of(args.dataset)
    runs = [plan.run(head, args.split or plan.config.splits[0]) for head in dict.fromkeys(args.head)]
    args.seed = list(dict.fromkeys(args.seed or ()))
    with reading_ahead(_stores(runs), args.stream) as ahead:
        from heads.parallel import asked, group, here

        with group(args.device) as device:
            args.device, args.threads = str(device), max(1, args.threads // here())
            _train(runs, args, asked().first, ahead)


def _train(runs: Sequence[Run], args: Namespace, first: bool, ahead: Ahead | None) -> None:
    """What each process of torchrun does; the first one judges what needs no training, and writes."""
    found: dict[str, dict[int, dict[str, Any]]] = {run.name: {} for run in runs}
    start, errors = time.monotonic(), []
    for (run, seed), metrics in _trained([r for r in runs if not r.members], args, ahead):
        if isinstance(metrics, FramepoolError):
            print(f"framepool: {run.name} seed {seed}: {metrics}", file=sys.stderr, flush=True)
            errors.append(metrics)
            continue
        if first:
            _tell(run, seed, metrics, found[run.name], start)
    for run in [] if errors or not first else [r for r in runs if r.members]:
        for seed in args.seed or run.seeds:
            _tell(run, seed, _fused(run, seed), found[run.name], start)
    if errors:
        raise errors[0]


def _tell(run: Run, seed: int, metrics: dict[str, Any], found: dict[int, dict[str, Any]], start: float) -> None:
    from heads.checkpoint import read_run

    found[seed] = metrics
    print(f"{run.head} seed {seed}: {_in_short(metrics)} after {time.monotonic() - start:.1f} s", flush=True)
    records = {s: read_run(run.folder / f"seed{s}") for s in {*run.seeds, seed}}
    digests = {s: record["digest"] for s, record in records.items() if record is not None}
    for other in run.seeds:  # that was trained before, of the same rows and videos
        if other not in found and other in digests and digests[other] == digests[seed]:
            found[other] = json.loads((run.folder / f"seed{other}" / "metrics.json").read_bytes())
    if set(run.seeds) <= found.keys():
        with Lock(run.folder / "trained.lock", LOCK_WAIT_S):  # seeds are trained alone, and may end together
            bring_weights(run.folder, run.stores.values())
            write_json(run.folder / "trained.json", {"run": run.name, "metrics": {str(s): m for s, m in found.items()}})


def _trained(
    runs: Sequence[Run], args: Namespace, ahead: Ahead | None
) -> Iterator[tuple[tuple[Run, int], dict[str, Any] | FramepoolError]]:
    """Heads on the rows of their stores, each store read once."""
    if not runs:
        return
    import torch

    from features.batches import Features
    from features.stream import Stream
    from heads.cnns import load_libraries
    from heads.malloc import keep_freed_memory
    from heads.parallel import here, ranks
    from heads.training import train_run

    start, plan, own = time.monotonic(), runs[0].plan, ranks()
    waves = [[(run, seed) for run in wave for seed in args.seed or run.seeds] for wave in _in_turn(runs)]
    most = max(map(len, waves))
    workers = min(args.threads, most) if args.device == "cpu" and own.count == 1 else 1
    if args.device == "cpu":
        keep_freed_memory()
    torch.set_num_threads(args.threads if workers == 1 else 1)  # before the first tensor: children inherit no threads
    stores = _stores(runs)
    if own.first:
        for store in stores.values():
            freshen(store)
    contents = {m: contents_of(store) for m, store in stores.items()}
    videos, train_set, test_set, labels = split_of(plan, runs[0].split)
    said = f"{len(train_set)} train, {len(test_set)} test videos, {len(videos.classes)} classes"
    say = partial(print, flush=True) if own.first else _silent
    together = f", {own.count} processes" if own.count > 1 else ""
    say(f"{', '.join(run.name for run in runs)}: {said}{together}")
    if ahead is None:
        features = opened(stores, threads=args.threads, stream=args.stream, processes=here())
    else:
        features = ahead.features()
    if not isinstance(features, Features):  # several trainings at once would read past each other
        workers = 1
        torch.set_num_threads(args.threads)
    streamed = isinstance(features, Stream)
    where = "streamed from disk" if streamed else "in memory" if isinstance(features, Features) else "computed as asked"
    say(f"  features {where} after {time.monotonic() - start:.1f} s")
    if workers > 1:
        load_libraries([run.plan.config.heads[run.head] for run in runs])

    def work(job: tuple[Run, int]) -> dict[str, Any]:
        run, seed = job
        own = features.only(tuple(run.stores))
        return train_run(
            run.folder / f"seed{seed}",
            config=_begun(run),
            features=own,
            labels=labels,
            train=train_set,
            test=test_set,
            classes=videos.classes,
            seed=seed,
            split=run.split,
            factors=plan.config.factors,
            actions=None if videos.actions is None else [videos.actions.get(v.id, ()) for v in videos.videos],
            groups=[v.group for v in videos.videos],
            device=args.device,
            provenance={
                "dataset": plan.dataset,
                "head": run.head,
                "recipe": run.digest,
                "digest": made_of(run, contents),
                "tested": plan.tested(run.split),
                "stores": own.stores,
                "streamed": streamed,
                "extractors": {m: described(store) for m, store in run.stores.items()},
                "versions": versions(),
                **({"began": run.start.name} if run.start else {}),
                **({"teachers": [teacher.name for teacher in run.teachers.values()]} if run.teachers else {}),
            },
            start=run.start_folder(seed),
            teachers={name: teacher.seed_folder(seed) for name, teacher in run.teachers.items()},
            checkpoint_s=60 * args.checkpoint_minutes,
            log=lambda text: say(f"  {run.head} seed {seed}: {text}"),
        )

    with nullcontext() if isinstance(features, Features | Stream) else features:
        for k, jobs in enumerate(waves):
            if all(len(later) == 1 for later in waves[k:]):  # from here on nothing needs to be forked
                workers = 1
                torch.set_num_threads(args.threads)
            failed = False
            for job, metrics in side_by_side(jobs, work, workers):
                failed |= isinstance(metrics, FramepoolError)
                yield job, metrics
            if failed:
                return  # what comes later may wait for it
        if not isinstance(features, Features | Stream) and own.first:
            say(f"  {features.in_words()}")


def _stores(runs: Sequence[Run]) -> dict[str, Store]:
    return {m: store for run in runs if not run.members for m, store in run.stores.items()}


def _in_turn(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """`runs` in lists, each of runs that wait for none but those of the lists before it."""
    todo = list(runs)
    while todo:
        names = {run.name for run in todo}
        ready = [run for run in todo if not names & {other.name for other in run.waits_for}]
        yield ready
        todo = [run for run in todo if run not in ready]


def _silent(_: str) -> None:
    """The other processes leave speaking to the first."""


def _begun(run: Run) -> BaseConfig:
    """The head's config, with the file of the network that it begins from."""
    config: Any = run.plan.config.heads[run.head]
    first = run.begins_from
    if first is None:
        return config  # type: ignore[no-any-return]
    if not first.network.exists():
        fix = f"run `framepool train {run.plan.dataset} --head {first.head} --split {first.split}` first"
        raise UserError("weights are not trained yet", where=first.network, fix=fix)
    return config.with_network(str(first.network), inflated=False)  # type: ignore[no-any-return]


def _fused(run: Run, seed: int) -> dict[str, Any]:
    """The mean of finished runs."""
    from heads.fusion import fuse_run

    print(f"{run.name}: {', '.join(member.name for member in run.members.values())}", flush=True)
    return fuse_run(
        run.folder / f"seed{seed}",
        config=run.plan.config.heads[run.head],  # type: ignore[arg-type]
        members={name: member.seed_folder(seed) for name, member in run.members.items()},
        seed=seed,
        split=run.split,
        factors=run.plan.config.factors,
        provenance={
            "dataset": run.plan.dataset,
            "head": run.head,
            "recipe": run.digest,
            "digest": run.digest,
            "versions": versions(),
        },
    )


def evaluate(args: Namespace) -> None:
    """Judge a finished run from its weights; prints the metrics as JSON."""
    import torch

    from features.batches import Features
    from features.stream import Stream
    from heads.scoring import Trained
    from heads.training import evaluate_run

    torch.set_num_threads(args.threads)
    run = Trained.load(args.folder)
    if run.members:
        fix = f"evaluate {' and '.join(str(member.folder) for member in run.members.values())}"
        raise UserError("a fusion has no weights to judge again", where=args.folder, fix=fix)
    plan = plans.of(run.record["dataset"])
    videos, _, test_set, labels = split_of(plan, run.record["split"])
    folders = {m: plan.work / "features" / Path(store["store"]).name for m, store in run.record["stores"].items()}
    kept = {m: folder for m, folder in folders.items() if (folder / "store.json").is_file()}
    features = (
        from_disk(kept, [v.id for v in videos.videos])
        if len(kept) == len(folders)
        else opened({m: plan.store_named(folder.name) for m, folder in folders.items()}, threads=args.threads)
    )
    with nullcontext() if isinstance(features, Features | Stream) else features:
        metrics = evaluate_run(
            args.folder, features=features, labels=labels, test=test_set, classes=videos.classes, device=args.device
        )
    shown = {k: v for k, v in metrics.items() if k != "per_class"}
    print(json.dumps(shown, indent=1, sort_keys=True))


def assemble(args: Namespace) -> None:
    """Write the results folder from finished runs and stores; the only command that writes there."""
    from pipelines.report import assemble as write_results
    from pipelines.report.thumbnails import thumbnails

    plan = plans.of(args.dataset)
    runs = plan.runs()
    missing = [run for run in runs if not run.complete]
    if args.partial:
        runs = [run for run in runs if run.finished]
    elif missing:
        fix = f"run `framepool train {plan.dataset} --head {missing[0].head} --split {missing[0].split}`"
        raise UserError("a head is not trained yet", where=missing[0].folder, fix=fix)
    old = stale(runs)
    if args.partial:
        runs = [run for run in runs if run not in old]
    elif old:
        fix = f"run `framepool train {plan.dataset} --head {old[0].head} --split {old[0].split}`"
        raise UserError("a head was judged on another list or other features", where=old[0].folder, fix=fix)
    write_results(
        args.out or plan.results,
        dataset=plan.dataset,
        title=plan.config.title,
        runs=_folders(runs),
        stores=[
            *(s.folder for s in plan.stores() if not args.partial or Path(s.summary).is_file()),
            *(s.computed for s in plan.all_stores() if not s.config.store and s.computed.is_file()),
        ],
        videos=plan.videos,
        splits=plan.config.splits,
        factors=plan.config.factors,
        plan_info=_plan_info(plan),
        sweeps=plan.config.sweeps,
        compared=[(c, name, _folders(b), _folders(t)) for c, name, b, t in _compared(plan, args.partial)],
        thumbnails=thumbnails(plan.root, plan.generator),
    )
    made = f"{len(runs)} of {len(plan.runs())} heads" if len(runs) < len(plan.runs()) else f"{len(runs)} heads"
    print(f"{(args.out or plan.results) / 'index.html'}: {made}")


def _folders(runs: Sequence[Run]) -> list[Path]:
    return [run.folder / f"seed{seed}" for run in runs for seed in run.seeds]


def _compared(plan: Plan, partial: bool) -> Iterator[tuple[Comparison, str, list[Run], list[Run]]]:
    """The comparisons whose runs are finished: all of them, but for `partial` results."""
    for comparison, name, better, than in plan.compared():
        both = (*better, *than)
        missing = next((run for run in both if not (run.finished if partial else run.complete)), None)
        old = [] if missing else stale(both)
        if not missing and not old:
            yield comparison, name, better, than
        elif not partial:
            what = "is not trained yet" if missing else "was judged on another list or other features"
            run = missing or old[0]
            fix = f"run `framepool train {name} --head {run.head} --split {run.split}`"
            raise UserError(f"a head that is compared {what}", where=run.folder, fix=fix)


def versions() -> dict[str, str]:
    """Versions that can matter to a number."""
    return {"python": platform.python_version(), "framepool": version("framepool"), **{p: version(p) for p in PACKAGES}}


def split_of(plan: Plan, split: str) -> tuple[VideoList, Sequence[int], Sequence[int], npt.NDArray[Any]]:
    """The list, the numbers of its training and test videos, and the labels (V,), or (V, C) of 0 and 1."""
    videos = plan.videos
    if split not in videos.splits:
        where = f"the list of {plan.dataset}"
        raise UserError("unknown split", where=where, got=split, fix=nearest(split, videos.splits))
    column = videos.splits.index(split)
    sides = {s: [n for n, v in enumerate(videos.videos) if v.splits[column] == s] for s in ("train", "test")}
    for side, numbers in sides.items():
        if not numbers:
            raise UserError("empty split", where=f"{plan.dataset} split {split}", expected=f"{side} videos", got="none")
    if videos.multi_label:
        labels = np.zeros((len(videos.videos), len(videos.classes)), np.int64)
        for number, video in enumerate(videos.videos):
            labels[number, list(video.labels)] = 1
    else:
        labels = np.array([video.labels[0] for video in videos.videos])
    return videos, sides["train"], sides["test"], labels


def _in_short(metrics: dict[str, Any]) -> str:
    names = [n for n in ("top1", "top5", "mean_class", "map") if metrics.get(n) is not None]
    return ", ".join(f"{n} {100 * metrics[n]:.2f} %" for n in names)


def _plan_info(plan: Plan) -> dict[str, Any]:
    return {
        "config": plan.config.model_dump(mode="json"),
        "command": f"snakemake --cores N results/{plan.dataset}",
        "assembled_with": sys.version.split()[0],
        "versions": versions(),
        "stores": [{"name": s.name, "digest": s.digest} for s in plan.stores()],
        "runs": [{"name": r.name, "digest": r.digest} for r in plan.runs()],
    }
