"""The results folder: index.html, leaderboard.csv, seeds.csv, outcomes.csv, metrics.json, run.json, figures/*.svg.

Names come from file names and annotation files, so nothing trusts them: HTML is escaped, a CSV cell is never a formula,
control characters are written out. The page asks nothing of any network.

    assemble(Path("results/demo"), dataset="demo", title="Demo", runs=[...], stores=[...], ...)
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from features.atomic import Disk, make_folder, write_bytes, write_json
from features.errors import printable
from features.videolist import VideoList
from heads.results import read_attention
from pipelines.comparisons import Comparison
from pipelines.report import figures
from pipelines.report.compare import Gap, Pair, behind
from pipelines.report.runs import Head, by_head, metric_names, ranking, read_run
from pipelines.report.stores import Store, flat, read_store
from pipelines.report.tables import Table, tables
from pipelines.report.thumbnails import Thumbnails
from pipelines.sweeps import Sweep

LISTED: Final = 400  # lines of a list on the page; the files beside it hold them all
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet compute


def assemble(
    out: Path,
    *,
    dataset: str,
    title: str,
    runs: Sequence[Path],
    stores: Sequence[Path],
    videos: VideoList,
    splits: Sequence[str],
    factors: Sequence[str],
    plan_info: dict[str, Any],
    sweeps: Mapping[str, Sweep] | None = None,
    compared: Sequence[tuple[Comparison, str, Sequence[Path], Sequence[Path]]] = (),
    thumbnails: Thumbnails | None = None,
) -> None:
    """Write the results folder of `dataset` from the folders of its finished runs and of its stores.

    `compared` has for each comparison the dataset and the folders of the finished runs on both sides.
    `plan_info` goes into run.json; its ``command`` and ``versions`` are shown on the page.
    """
    heads = by_head(read_run(folder, factors) for folder in runs)
    found = [read_store(folder) for folder in stores]
    metrics = metric_names(heads, factors)
    filled = tables(sweeps or {}, heads)
    pairs = [Pair(c, name, *(by_head(map(read_run, side))[0] for side in sides)) for c, name, *sides in compared]
    listed_heads = outside(heads, filled)
    drawn, gaps = _drawn(listed_heads, factors, videos, filled), behind(heads)
    looking, looks = _looks(heads, videos, thumbnails) if thumbnails else ("", {})
    drawn |= looks
    make_folder(out)
    Disk.remove(out / "figures")
    make_folder(out / "figures")
    for name, svg in drawn.items():
        write_bytes(out / "figures" / f"{name}.svg", svg.encode())
    _write_csv(out / "leaderboard.csv", leaderboard(heads, metrics, splits, gaps))
    _write_csv(out / "seeds.csv", seeds(heads, metrics))
    _write_csv(out / "outcomes.csv", outcomes(found))
    Disk.remove(out / "tables")
    for table in filled:
        _write_csv(make_folder(out / "tables") / f"{table.name}.csv", table.rows())
    if pairs:
        _write_csv(make_folder(out / "tables") / "comparisons.csv", [pair.row() for pair in pairs])
    write_json(out / "metrics.json", _metrics(dataset, leaderboard(heads, metrics, splits, gaps), heads, metrics))
    write_json(out / "run.json", _run(dataset, title, heads, found, plan_info))
    page = (
        _environment()
        .get_template("page.html")
        .render(
            dataset=dataset,
            title=title,
            heads=listed_heads,
            unlisted=len(heads) - len(listed_heads),
            rowless=_rowless(heads),
            tables=filled,
            pairs=pairs,
            looking=looking,
            metrics=metrics,
            ranking=ranking(heads),
            gaps=gaps,
            chance=None if videos.multi_label else 1 / max(1, len(videos.classes)),
            splits=splits,
            stores=found,
            troubles=[trouble for store in found for trouble in store.troubles],
            listed=LISTED,
            videos=videos,
            classes=_classes(videos, splits),
            figures={name: Markup(svg) for name, svg in drawn.items()},
            plan=plan_info,
        )
    )
    write_bytes(out / "index.html", page.encode())


def _rowless(heads: Sequence[Head]) -> tuple[int, int, str] | None:
    """The most test videos without any row that a run was judged on, of how many, and by which head."""
    found = [
        (int(run.value("n_test_without_rows") or 0), int(run.value("n_test") or 0), h.name)
        for h in heads
        for run in h.runs
    ]
    return max((one for one in found if one[0]), default=None)


def outside(heads: Sequence[Head], filled: Sequence[Table]) -> list[Head]:
    """The heads that are listed one by one: those that are no sweep's own, and of each table the best."""
    best = {min(table.heads, key=heads.index).name for table in filled}
    swept = {head.name for table in filled for head in table.own} - best
    return [head for head in heads if head.name not in swept]


def leaderboard(
    heads: Sequence[Head], metrics: dict[str, str], splits: Sequence[str], gaps: Mapping[str, Gap]
) -> list[dict[str, Any]]:
    """One row a head, the best first."""
    none = dict.fromkeys(Gap._fields)
    first = next(iter(metrics), "top1")
    rest = [metric for metric in metrics if metric != first]
    return [
        {
            "head": head.name,
            "kind": head.kind,
            "features": " ".join(head.features),
            first: head.score(first),
            f"{first}_std_over_seeds": head.deviation(first),
            **{f"{first}_split_{split}": head.split_score(first, split) for split in splits},
            **{
                f"behind_best{'' if key == 'mean' else f'_{key}'}": value
                for key, value in (gaps[head.name]._asdict() if head.name in gaps else none).items()
                if gaps
            },
            **{metric.removeprefix("factors."): head.score(metric) for metric in rest},
            "parameters": head.parameters,
            "seconds": round(head.seconds, 3),
            "seeds": len(head.seeds),
            f"{first}_of_each_seed": " ".join(_number(head.seed_score(first, seed)) for seed in head.seeds),
        }
        for head in heads
    ]


def seeds(heads: Sequence[Head], metrics: dict[str, str]) -> list[dict[str, Any]]:
    """One row a run: head, split, seed."""
    return [
        {
            "head": head.name,
            "split": run.split,
            "seed": run.seed,
            **{metric.removeprefix("factors."): run.value(metric) for metric in metrics},
            "loss": run.value("loss"),
            "epochs": run.record.get("epochs"),
            "seconds": run.record["seconds"],
        }
        for head in heads
        for run in head.runs
    ]


def outcomes(stores: Sequence[Store]) -> list[dict[str, Any]]:
    """One row for each video of each store that is not ok."""
    empty = dict.fromkeys(("store", "video", "outcome", "reason", "rows", "decoded", "promised"), "")
    return [trouble._asdict() for store in stores for trouble in store.troubles] or [empty]


def cell(value: Any) -> Any:
    """`value` as a CSV cell: text is printable, and no spreadsheet takes it for a formula."""
    if value is None:
        return ""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, str):
        return printable(f"'{value}" if value.startswith(FORMULA) else value)
    return value


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([cell(name) for name in (rows[0] if rows else ())])
    writer.writerows([cell(value) for value in row.values()] for row in rows if any(v != "" for v in row.values()))
    write_bytes(path, stream.getvalue().encode())


def _drawn(heads: Sequence[Head], factors: Sequence[str], videos: VideoList, filled: Sequence[Table]) -> dict[str, str]:
    """Every figure that there is something to draw for, by its file name."""
    if not heads:
        return {}
    values = [len({name.split("-")[k] for name in videos.classes}) for k in range(len(factors))]
    found = {
        "confusion": figures.confusion(heads[0]),
        "classes": figures.per_class(heads[0]),
        "factors": figures.factors(heads, factors, [1 / max(1, n) for n in values]),
        **{f"table-{table.name}": figures.by_epoch(table) for table in filled},
        **{f"learning-{head.name}": figures.learning_curves(head) for head in heads},
    }
    return {name: svg for name, svg in found.items() if svg is not None}


def _looks(heads: Sequence[Head], videos: VideoList, thumbnails: Thumbnails) -> tuple[str, dict[str, str]]:
    """The best head that has attention, and its figures: a few videos, each modality."""
    paths = {video.id: video.path for video in videos.videos}
    for head in heads:
        found = {}
        for k, look in enumerate(read_attention(head.runs[0].folder)):
            for modality, times_us in look.time_us.items():
                if len(times_us):
                    pictures = thumbnails(look.id, paths.get(look.id, ""), times_us)
                    found[f"attention-{k}-{modality}"] = figures.attention(look, modality, pictures)
        if found:
            return head.name, found
    return "", {}


def _metrics(
    dataset: str, summary: Sequence[dict[str, Any]], heads: Sequence[Head], metrics: dict[str, str]
) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "ranked_by": next(iter(metrics), "top1"),
        "heads": [
            row | {"runs": [{"split": run.split, "seed": run.seed, **run.metrics} for run in head.runs]}
            for row, head in zip(summary, heads, strict=True)
        ],
    }


def _run(
    dataset: str, title: str, heads: Sequence[Head], stores: Sequence[Store], plan_info: dict[str, Any]
) -> dict[str, Any]:
    keys = ("head", "split", "seed", "digest", "recipe", "stores", "versions", "epochs", "seconds")
    return {
        "dataset": dataset,
        "title": title,
        "assembled": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "training_seconds": round(sum(run.record["seconds"] for head in heads for run in head.runs), 3),
        "plan": plan_info,
        "runs": [{key: run.record[key] for key in keys if key in run.record} for head in heads for run in head.runs],
        "stores": [
            {
                "name": s.name,
                "digest": s.digest,
                "rows": s.rows,
                "bytes": s.bytes,
                "facts": s.facts,
                "outcomes": s.counts,
            }
            for s in stores
        ],
    }


def _classes(videos: VideoList, splits: Sequence[str]) -> list[tuple[str, int, int, int]]:
    """Of each class its videos, and how many of them train and test in the first of `splits`."""
    column = videos.splits.index(splits[0]) if splits else 0
    total, train, test = Counter[int](), Counter[int](), Counter[int]()
    for video in videos.videos:
        total.update(video.labels)
        if video.splits:
            (train if video.splits[column] == "train" else test if video.splits[column] else Counter()).update(
                video.labels
            )
    return [(name, total[k], train[k], test[k]) for k, name in enumerate(videos.classes)]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters.update(percent=_percent, count=_count, size=_size, duration=_duration, flat=flat, json=_json)
    return environment


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _count(value: int) -> Markup:
    """1234567 -> 1 234 567, with thin spaces, as they group digits in any language."""
    return Markup(f"{value:,}".replace(",", "&thinsp;"))


def _size(value: float) -> str:
    units = ("B", "kB", "MB", "GB", "TB")
    power = next((k for k in range(len(units)) if value < 1000 ** (k + 1)), len(units) - 1)
    return f"{value / 1000**power:.{0 if power == 0 else 1}f} {units[power]}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
