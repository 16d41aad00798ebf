"""features, models, doctor: what there is.

framepool features ucf6 --export ucf6.h5
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from argparse import Namespace
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from extract.config import Imported
from features.atomic import Disk, Lock
from features.errors import UserError, nearest
from features.manifest import Manifest, read_manifest, shards
from pipelines import plan as plans
from pipelines.commands.stage_one import in_words
from pipelines.config import config_path
from pipelines.plan import Plan

MAPS = (1, (832, 8, 8, 8))  # of KFT's trunk, of one clip of 32 frames


def features(args: Namespace) -> None:
    """List stores, or export, import, prune."""
    plan = plans.of(args.dataset)
    folder = plan.work / "features"
    if args.export is not None:
        _export(plan, args.export, args.layout)
    elif args.import_ is not None:
        from features.hdf5 import import_stores, is_ours

        if not is_ours(args.import_):
            _bring_in(plan, args.import_, args.threads)
            return
        needed = {store.name for store in plan.stores()}
        for store, shard, new in import_stores(args.import_, folder):
            note = "" if store in needed else " (no extractor of this config makes it)"
            print(f"{store} shard {shard}: {'imported' if new else 'is there already'}{note}")
    elif args.prune:
        _prune(plan, args.yes)
    else:
        _list(plan, folder)


def _export(plan: Plan, path: Path, layout: str | None) -> None:
    from features.foreign import layout_of
    from features.foreign.export import export
    from features.hdf5 import export_stores

    layout = layout or {"hdf5": "shards"}.get(layout_of(path), layout_of(path))
    folders = []
    for store in plan.stores():
        count = len(shards(store.folder))
        folders += [store.folder] if count else []
        if count < plan.shard_count and not store.config.temporary:
            print(f"{store.name}: {count} of {plan.shard_count} shards", file=sys.stderr)
    if not folders:
        fix = "run `framepool extract` first"
        raise UserError("no features to export", where=plan.work / "features", expected="shards", got="none", fix=fix)
    if layout == "shards":
        count = export_stores(path, folders)
        print(f"{path}: {count} shards, {path.stat().st_size} bytes")
        return
    count = export(path, layout, folders)
    print(f"{path}: the rows of {count} videos" + (f" of {len(folders)} stores" if len(folders) > 1 else ""))


def _bring_in(plan: Plan, path: Path, threads: int) -> None:
    """Features of others, by the extractors of the config that name them."""
    from pipelines.commands.stage_one import extract

    kind = {n: e for n, e in plan.config.extractors.items() if isinstance(e, Imported)}
    names = [name for name, extractor in kind.items() if extractor.path.resolve() == path.resolve()]
    if not names:
        where, fix = f"{config_path(plan.dataset)}: $.extractors", f"add `NAME: {{kind: imported, path: {path}}}` there"
        raise UserError("no extractor imports these features", where=where, got=path, fix=fix)
    for name in names:
        here = {"shard": None, "split": None, "threads": threads, "scheduler": None, "workers": None}
        extract(Namespace(dataset=plan.dataset, extractor=[name], **here))


def _list(plan: Plan, folder: Path) -> None:
    from pipelines.report.stores import read_store

    needed = {store.name for store in plan.stores()}
    there = {p.name for p in folder.iterdir() if p.is_dir()} if folder.is_dir() else set()
    for name in sorted(needed | there):
        manifests = [read_manifest(folder / name, shard) for shard in shards(folder / name)]
        state = f"{len(manifests)} of {plan.shard_count} shards" if name in needed else "not needed by the config"
        size = sum(m.bytes for m in manifests)
        print(f"{name}: {state}, {sum(m.rows for m in manifests)} rows, {size / 1e6:.1f} MB")
        if manifests:
            first = manifests[0]
            print(f"  row {'x'.join(map(str, first.row_shape))} {first.dtype}; {_statistics(manifests)}")
            print(f"  outcomes {in_words(o for m in manifests for o in m.outcomes)}")
            print(f"  recipe {json.dumps(first.recipe, sort_keys=True)}")
    for store in plan.all_stores():
        if not store.config.store and store.computed.is_file():
            ended = ", ".join(f"{n} {name}" for name, n in read_store(store.computed).counts.items())
            print(f"{store.name}: keeps no rows\n  outcomes {ended}")


def _statistics(manifests: list[Manifest]) -> str:
    rows = max(1, sum(m.rows for m in manifests))
    mean = sum(m.statistics["mean"] * m.rows for m in manifests) / rows
    text = f"mean {mean:.4g}, largest {max(m.statistics['max_abs'] for m in manifests):.4g}"
    error = manifests[0].statistics.get("relative_error")
    return text + (f", relative error of its precision {error:.4g}" if error is not None else "")


def _prune(plan: Plan, yes: bool) -> None:
    needed = {s.folder for s in plan.stores()} | {r.folder for r in plan.runs()}
    places = [plan.work / "features", plan.work / "runs"]
    extra = sorted(p for place in places if place.is_dir() for p in place.iterdir() if p.is_dir() and p not in needed)
    if not extra:
        print(f"{plan.dataset}: nothing to prune")
        return
    for path in extra:
        size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        print(f"{path}: {size / 1e6:.1f} MB")
    if not yes and not _agreed("remove these? [y/N] "):
        print("nothing removed")
        return
    for path in extra:
        for lock in sorted(path.rglob("*.lock")):
            with Lock(lock):
                pass  # somebody who is writing holds it, and that is an error that names them
        Disk.remove(path)
        Disk.remove(plan.work / "made" / path.name)
    print(f"{len(extra)} folders removed")


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        raise UserError("nobody is there to answer", fix="give --yes to prune without asking") from None


def models(args: Namespace) -> None:
    """Networks that match the patterns (default: those of the papers), all heads, and the models of papers' tables."""
    networks, found, papers = _networks(args.pattern), _heads(), _papers()
    if args.json:
        print(json.dumps({"networks": networks, "heads": found, "papers": papers}, indent=1))
        return
    print(f"{'network':<28}{'library':<13}{'parameters':>13}{'MACs':>10}{'features':>10}  input")
    for n in networks:
        size = "x".join(map(str, n["input"]))
        print(
            f"{n['name']:<28}{n['library']:<13}{n['parameters']:>13,}{n['macs'] / 1e9:>9.3f}G"
            f"{n['features']:>10}  {size}"
        )
    print(f"\n{'head':<28}{'':<13}{'parameters':>13}{'MACs':>10}  on one video of")
    for h in found:
        print(f"{h['name']:<28}{'':<13}{h['parameters']:>13,}{h['macs'] / 1e6:>9.3f}M  {h['on']}")
    print(
        f"\n{'in a paper':<28}{'table':<22}{'parameters':>13}{'printed':>9}{'MACs':>10}{'its rule':>10}{'printed':>9}"
    )
    for p in papers:
        millions = "" if p["paper_parameters"] is None else f"{p['paper_parameters'] / 1e6:.1f}M"
        rule, printed = ("" if p[k] is None else f"{p[k] / 1e9:.{n}f}G" for k, n in (("rule", 3), ("paper_macs", 2)))
        print(
            f"{p['name']:<28}{p['table']:<22}{p['parameters']:>13,}{millions:>9}{p['macs'] / 1e9:>9.3f}G"
            f"{rule:>10}{printed:>9}"
        )


def _networks(patterns: list[str]) -> list[dict[str, Any]]:
    from extract.networks import Library, NetworkError, names
    from extract.networks.describe import PAPERS, describe

    wanted = list(PAPERS)
    if patterns:
        libraries: tuple[Library, ...] = ("timm", "torchvision", "framepool")
        known = [(name, library) for library in libraries for name in names(library)]
        wanted = [pair for pattern in patterns for pair in known if fnmatchcase(pair[0], pattern)]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name, _ in known):
                raise UserError("no such network", got=pattern, fix=nearest(pattern, [n for n, _ in known]))
    found = []
    for name, library in wanted:
        try:
            found.append(describe(name, library))
        except NetworkError as error:
            print(f"framepool: {name}: {error}", file=sys.stderr)
    return found


def _heads() -> list[dict[str, Any]]:
    import torch

    import heads
    from extract.networks.describe import macs, parameters

    classes, found = 400, []
    for name in heads.HEADS:
        pixels = name == "tsn"
        rows, shape = {"tsn": (1, (224, 224, 3)), "kft": MAPS, "i3d": MAPS}.get(name, (25, (2048,)))
        variants: tuple[dict[str, Any], ...] = ({},)
        if name == "kft":
            variants = ({"dims": "3d"}, {"dims": "2d"}, {"dims": "1d"})
        for options in variants:
            network = {"name": "resnet50"} if pixels else None
            head = heads.build(name, {"rgb": shape}, classes, network=network, **options).eval()
            features = {"rgb": torch.zeros((1, rows, *shape), dtype=torch.uint8 if pixels else torch.float32)}
            count = macs(head, features, {"rgb": torch.ones((1, rows), dtype=torch.bool)})
            extra = (["resnet50"] if pixels else []) + [f"{k} {v}" for k, v in options.items()]
            on = ", ".join((f"{rows} x {'x'.join(map(str, shape))}", f"{classes} classes", *extra))
            found.append({"name": name, "parameters": parameters(head), "macs": count, "on": on})
    return found


def _papers() -> list[dict[str, Any]]:
    from pipelines.papers import ROWS

    found = []
    for row in ROWS:
        own = row.measure()
        paper = {
            "paper_parameters": row.parameters and row.parameters * 1e6,
            "paper_macs": row.gmacs and row.gmacs * 1e9,
        }
        counts = {"parameters": own.parameters, "macs": own.macs, "rule": own.rule}
        found.append({"table": row.table, "name": row.name, **counts, **paper})
    return found


def doctor(_: Namespace) -> None:
    """Print versions, devices and what is missing; exit 1 where something needed is not there."""
    missing = []
    for package in sorted(re.match(r"[\w.-]+", r)[0] for r in requires("framepool") or () if "extra ==" not in r):  # type: ignore[index]
        try:
            print(f"{package:<32}{version(package)}")
        except PackageNotFoundError:
            print(f"{package:<32}not installed")
            missing.append(package)
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{'python':<14}{sys.version.split()[0]}\n{'cores':<14}{cores}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"{'CUDA':<14}{', '.join(gpus) or 'no device: extractors and heads run on the CPU'}")
    try:
        from extract.openvino_core import CORE

        print(f"{'OpenVINO CPU':<14}{CORE.get_property('CPU', 'FULL_DEVICE_NAME')}")
        print(f"{'':<14}{', '.join(CORE.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'))}")
    except (ImportError, RuntimeError) as error:
        print(f"{'OpenVINO CPU':<14}not usable: {error}")
        missing.append("openvino's CPU device")
    disk = shutil.disk_usage(Path())
    print(f"{'disk here':<14}{disk.free / 1e9:.1f} GB free of {disk.total / 1e9:.1f} GB")
    if missing:
        raise UserError("something is missing", got=", ".join(missing), fix="make the environment anew with `make`")
    print("nothing is missing")
