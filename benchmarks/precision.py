"""What bf16 and int8 cost: the error of the rows, and the accuracy of heads trained on them, beside fp32.

    python -m benchmarks.precision [--datasets ucf6 ucf6_audio] [--precisions fp32 bf16 int8]

For each dataset the extractor that its heads read is run at each precision, and the dataset's own attention cluster
and ridge regression are trained on the rows, with all its splits and seeds. Everything stays under work/precision.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORK = Path("work/precision")
DATASETS = {"ucf6": "rgb", "ucf6_audio": "audio"}
HEADS = ("attention_cluster", "ridge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    args = parser.parse_args()
    print(f"{'dataset':<14}{'network':<18}{'precision':<11}{'error':>8}" + "".join(f"{h:>20}" for h in HEADS))
    for dataset in args.datasets:
        for precision in args.precisions:
            name, error, store = extracted(dataset, precision)
            scores = [np.mean(top1(dataset, head, store, precision)) for head in HEADS]
            shown = "".join(f"{100 * score:>18.2f} %" for score in scores)
            print(f"{dataset:<14}{name:<18}{precision:<11}{error:>8.4f}{shown}", flush=True)


def extracted(dataset: str, precision: str) -> tuple[str, float, Path]:
    """The network's name, the rows' relative error, and the store."""
    from dataclasses import replace

    from extract.config import recipe
    from extract.shard import extract_shard
    from pipelines import plan as plans
    from pipelines.commands.stage_one import task_of

    plan = plans.of(dataset)
    store = plan.store(DATASETS[dataset])
    error, threads = 0.0, len(os.sched_getaffinity(0))
    for shard in range(plan.shard_count):
        task = task_of(store, shard)
        config: Any = task.config.model_copy(update={"precision": precision, "calibration": 64})
        source = task.source
        if store.source is not None:
            above = task_of(store.source, shard)
            extract_shard(replace(above, store=WORK / dataset / "source"), workers=threads)
            source = WORK / dataset / "source"
        made = recipe(config, store.recipe["network"]["weights"], store.recipe["source"])
        first = plan.videos.videos[:64]
        task = replace(
            task,
            config=config,
            recipe=made,
            store=WORK / dataset / precision,
            source=source,
            calibration=tuple(type(task.items[0])(v.id, v.path) for v in first),
        )
        statistics = extract_shard(task, workers=threads).statistics
        error = max(error, statistics.get("relative_error", 0.0))
    return config.network.name, error, WORK / dataset / precision


def top1(dataset: str, head: str, store: Path, precision: str) -> Sequence[float]:
    """Of every split and seed."""
    from features.batches import Features
    from heads.training import train_run
    from pipelines import plan as plans
    from pipelines.commands.stage_two import split_of

    plan, found = plans.of(dataset), []
    features = Features.open({DATASETS[dataset]: store}, [v.id for v in plan.videos.videos])
    for split in plan.config.splits:
        videos, train, test, labels = split_of(plan, split)
        for seed in plan.run(head, split).seeds:
            metrics = train_run(
                WORK / dataset / "runs" / f"{precision}-{head}-{split}-{seed}",
                config=plan.config.heads[head],
                features=features,
                labels=labels,
                train=train,
                test=test,
                classes=videos.classes,
                seed=seed,
                split=split,
                provenance={"head": head, "digest": plan.run(head, split).digest, "stores": {}, "versions": {}},
                log=lambda text: None,
            )
            found.append(metrics["top1"])
    return found


if __name__ == "__main__":
    main()
