"""How fast heads train on cached features, beside a plain PyTorch loop and beside the same step on rows in memory.

    python -m benchmarks.heads [--only attention_cluster vtn bilstm] [--videos 10000]

On made-up stores (25 rows a video of 1536 rgb, 1536 flow and 512 audio; 400 classes) for each head:

- command: `framepool train` as a process, from its start to its first step and the seconds of its last epoch; an
  attention cluster's is the fourth, when its states, half a gigabyte each, are written to pages that were in use;
- plain loop: a Dataset of one .npy a video and modality (fp32), a DataLoader with a worker a core, the same head in
  torch's own layers, torch's RMSprop or Adam, fp32; some batches after the first ones, scaled to an epoch;
- step in memory: our step again and again on one batch that is already there;
- what bounds it: of that step the products of matrices, at the rate of a bare product of the same precision in this
  run, the optimiser and a classifier behind heavy dropout, each timed alone, and what is left; of the command, what the
  loop adds to the step.

The recipe is the head's own (batch, rows, optimiser, dropout); ours runs in the precision that is named.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

REPO = Path(__file__).resolve().parents[1]
CORES = len(os.sched_getaffinity(0))
DIMS = {"rgb": 1536, "flow": 1536, "audio": 512}
ROWS, CLASSES, TESTED = 25, 400, 64
HEADS: dict[str, dict[str, Any]] = {
    "attention_cluster": {
        "kind": "attention_cluster",
        "clusters": {"rgb": 64, "flow": 32, "audio": 32},
        "sample": {"train": 20, "test": 25},
    },
    "vtn": {"kind": "vtn"},
    "bilstm": {
        "kind": "bilstm",
        "hidden": {"rgb": 1024, "flow": 512, "audio": 512},
        "sample": {"train": 20, "test": 25},
    },
}
EPOCHS = {"attention_cluster": 4, "vtn": 2, "bilstm": 2}
WARM_UP, STEPS = 4, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--folder", type=Path, help="keep the made-up features here, and use those that are there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path("work") if Path("work").is_dir() else None) as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        make(folder, args.videos)
        for head in args.only:
            peer = alone(plain_loop, folder, head, args.videos)
            print(f"{head:18s} plain loop         {peer:7.1f} s an epoch", flush=True)
            for precision in args.precisions:
                first_s, epoch_s = command(folder, f"{head}_{precision}", EPOCHS[head])
                step_s, bounds = alone(in_memory, head, precision, args.videos)
                ours = f"{epoch_s:7.1f} s an epoch, first step after {first_s:.1f} s; step in memory {step_s:.1f} s"
                ratios = f"over the plain loop {peer / epoch_s:.2f}, over the step in memory {step_s / epoch_s:.2f}"
                bounds["the loop around it"] = epoch_s - step_s
                parts = ", ".join(f"{what} {seconds / epoch_s:.0%}" for what, seconds in bounds.items())
                print(f"{head:18s} {precision} command       {ours}\n{'':18s} {precision} {ratios}", flush=True)
                print(f"{'':18s} {precision} bound by {max(bounds, key=bounds.__getitem__)}: {parts}", flush=True)


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """What `function` returns in a process of its own, which takes its memory and threads with it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def make(folder: Path, videos: int) -> None:
    """Stores, .npy files, and a config of a dataset that has them."""
    from features.atomic import write_json
    from features.manifest import Manifest
    from features.outcome import Outcome
    from features.store import write_shard
    from pipelines import plan

    (folder / "config").mkdir(parents=True, exist_ok=True)
    (folder / "config" / "made.yaml").write_text(yaml.safe_dump(config()))
    names = [f"v{k:05d}" for k in range(videos + TESTED)]
    with (folder / "list.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("path", "label", "split"))
        for k, name in enumerate(names):
            rows.writerow((f"{name}.mp4", f"class{k % CLASSES:03d}", "train" if k < videos else "test"))
    os.chdir(folder)
    here = plan.of("made")
    for modality, dim in DIMS.items():
        store = here.store(modality)
        if Path(store.summary).is_file():
            continue
        rng = np.random.default_rng(dim)
        (folder / "npy" / modality).mkdir(parents=True, exist_ok=True)
        files = []
        for shard in range(here.shard_count):
            ids = [video.id for video in here.shard_videos(shard)]
            frames = rng.standard_normal((len(ids), ROWS, dim), dtype=np.float32).astype(np.float16)
            for name, video in zip(ids, frames, strict=True):
                np.save(folder / "npy" / modality / f"{name}.npy", video.astype(np.float32))
            manifest = Manifest(
                extractor=modality,
                digest=store.digest,
                recipe=store.recipe,
                facts={},
                shard=shard,
                list_digest="made",
                ids=tuple(ids),
                outcomes=(Outcome(outcome="ok", rows=ROWS),) * len(ids),
                row_shape=(dim,),
                dtype="float16",
            )
            store.folder.mkdir(parents=True, exist_ok=True)
            times_us = np.tile(np.arange(ROWS, dtype=np.int64) * 400_000, len(ids))
            flat = frames.reshape(-1, dim)
            written = write_shard(store.folder / f"{shard:05d}.zarr", manifest, lambda _, f=flat: iter([f]), times_us)
            write_json(store.folder / f"{shard:05d}.json", written.to_json())
            files.append(written.files)
        write_json(Path(store.summary), {"contents": digest_of(files)})


def digest_of(value: Any) -> str:
    from features.recipe import digest

    return digest(value)


def config() -> dict[str, Any]:
    """The dataset: its extractors never run here."""
    heads = {
        f"{name}_{precision}": {
            **head,
            "features": list(DIMS),
            "train": {"epochs": EPOCHS[name], "precision": precision},
        }
        for name, head in HEADS.items()
        for precision in ("fp32", "bf16")
    }
    extractor = {"kind": "rgb", "network": {"name": "inception_resnet_v2", "weights": "DEFAULT"}}
    return {
        "title": "Made up",
        "videos": {"format": "table", "root": ".", "list": "list.csv"},
        "max_bad_share": 1,
        "extractors": {m: {**extractor, "batch": k + 1} for k, m in enumerate(DIMS)},
        "heads": heads,
    }


def command(folder: Path, head: str, epochs: int) -> tuple[float, float]:
    """Seconds from the start of the process to its first step, and of the last epoch."""
    shutil.rmtree(folder / "work" / "made" / "runs", ignore_errors=True)
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "train", "made", "--head", head, "--threads", str(CORES)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds, first = [], 0.0
    for line in process.stdout or ():
        if found := re.search(r": epoch .*\(([\d.]+) s", line):  # and not those from inside of one
            seconds.append(float(found[1]))
            first = first or time.monotonic() - started - seconds[0]
    if process.wait() or len(seconds) != epochs:
        raise SystemExit(f"framepool train {head} ended with {process.returncode}")
    return first, seconds[-1] - seconds[-2]


def in_memory(name: str, precision: str, videos: int) -> tuple[float, dict[str, float]]:
    """Our step on one batch, and its parts, as seconds an epoch."""
    import heads
    from features.batches import Features
    from heads.data import Data
    from heads.loop import Loop, Step
    from heads.malloc import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(CORES)
    head_config = heads.HEADS[HEADS[name]["kind"]][1].parse(config()["heads"][f"{name}_{precision}"], "made")
    train = head_config.train  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    rows = {m: [rng.standard_normal((ROWS, d)).astype(np.float16) for _ in range(train.batch)] for m, d in DIMS.items()}
    features = Features.of([str(k) for k in range(train.batch)], rows)
    numbers = torch.arange(train.batch)
    data = Data(
        features=features,
        labels=numbers % CLASSES,
        train=numbers,
        test=numbers[:0],
        classes=tuple(map(str, range(CLASSES))),
    )
    head = heads.from_config(head_config, features.shapes, CLASSES)
    loop = Loop(head=head, config=head_config, train=train, data=data, seed=0, device=torch.device("cpu"))
    head.train()
    select = {m: head.train_rows(head_config.rows(m).train, torch.Generator().manual_seed(0)) for m in DIMS}
    batch = features.batch(numbers, select, loop.device, head_config.align)
    steps = -(-videos // train.batch)
    step = Step(numbers, batch, data.labels, len(numbers), empty=False)
    step_s = timed(lambda: loop._step(step)) * steps
    products_s = operations(head, lambda: loop._step(step)) / product_rate(precision) * steps
    optimiser_s = timed(loop.optimizer.step) * steps
    kept_s = sum(timed(there_and_back(m, train.batch)) * steps for m in head.modules() if sparse(m))
    found = {"products of matrices": products_s, "the optimiser": optimiser_s}
    if kept_s:
        found["the classifier, of what is kept"] = kept_s
    return step_s, {**found, "the rest of the step": step_s - sum(found.values())}


def sparse(module: nn.Module) -> bool:
    """Whether it computes with what its dropout keeps alone, which is no product of matrices."""
    from heads.dropout import DropoutLinear

    return isinstance(module, DropoutLinear) and module.sparse is not None


def there_and_back(layer: nn.Module, videos: int) -> Callable[[], Any]:
    """A step of `layer` alone."""
    inputs = torch.randn(videos, layer.in_features, requires_grad=True)  # type: ignore[call-overload]

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        torch.autograd.backward(layer(inputs).sum())

    return step


def operations(head: nn.Module, step: Callable[[], Any]) -> float:
    """Floating-point operations of the products of matrices in one step; those of torch's LSTM, one kernel, by
    hand: forward, and twice that backward."""
    found: list[float] = []

    def count(lstm: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        if not isinstance(lstm, nn.LSTM):
            raise TypeError(lstm)
        rows = inputs[0].shape[0] * inputs[0].shape[1] * (2 if lstm.bidirectional else 1)
        found.append(3 * 2 * rows * 4 * lstm.hidden_size * (lstm.input_size + lstm.hidden_size))

    hooks = [m.register_forward_hook(count) for m in head.modules() if isinstance(m, nn.LSTM)]
    with FlopCounterMode(display=False) as counter:
        step()
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() + sum(found)


def product_rate(precision: str, size: int = 2048) -> float:
    """Operations a second of one large product."""
    from extract.networks.bf16 import has_bf16

    dtype = torch.bfloat16 if precision == "bf16" and has_bf16(torch.device("cpu")) else torch.float32
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    out = torch.empty(size, size, dtype=dtype)
    return 2 * size**3 / timed(lambda: torch.mm(a, b, out=out))


def endless(loader: Any) -> Any:
    while True:
        yield from loader


def plain_loop(folder: Path, name: str, videos: int) -> float:
    """The peer: seconds an epoch."""
    torch.set_num_threads(CORES)
    spec = {"attention_cluster": (PlainCluster, 128, 20), "vtn": (PlainVtn, 32, 16), "bilstm": (PlainBiLstm, 128, 20)}
    maker, batch, rows = spec[name]
    torch.manual_seed(0)
    model = maker()
    if name == "vtn":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-4)
    else:
        optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, alpha=0.9)
    weights = torch.ones(CLASSES)
    loader = DataLoader(Files(folder, videos, rows), batch_size=batch, shuffle=True, num_workers=CORES, drop_last=True)
    batches = endless(loader)

    def step() -> None:
        features, labels = next(batches)
        loss = nn.functional.cross_entropy(model(features), labels, weight=weights)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        if name != "vtn":
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return timed(step) * -(-videos // batch)


def timed(step: Callable[[], Any]) -> float:
    """Seconds of a step, in the mean, after some to warm up."""
    for _ in range(WARM_UP):
        step()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - started) / STEPS


class Files(Dataset[tuple[dict[str, Tensor], int]]):
    """One .npy a video and modality; a random subset of its rows."""

    def __init__(self, folder: Path, videos: int, rows: int) -> None:
        self.folder, self.videos, self.rows = folder / "npy", videos, rows

    def __len__(self) -> int:
        return self.videos

    def __getitem__(self, k: int) -> tuple[dict[str, Tensor], int]:
        found = {}
        for modality in DIMS:
            video = np.load(self.folder / modality / f"v{k:05d}.npy")
            chosen = torch.randperm(len(video))[: self.rows].sort().values
            found[modality] = torch.from_numpy(video)[chosen]
        return found, k % CLASSES


class PlainCluster(nn.Module):
    """Attention clusters 64/32/32 as one writes them down from the paper."""

    def __init__(self) -> None:
        super().__init__()
        self.units = {"rgb": 64, "flow": 32, "audio": 32}
        self.scores = nn.ModuleDict({m: nn.Conv1d(d, self.units[m], 1) for m, d in DIMS.items()})
        self.alpha = nn.ParameterDict({m: nn.Parameter(torch.randn(n, 1)) for m, n in self.units.items()})
        self.beta = nn.ParameterDict({m: nn.Parameter(torch.randn(n, 1)) for m, n in self.units.items()})
        self.dropout = nn.Dropout(0.9)
        self.fc = nn.Linear(sum(n * DIMS[m] for m, n in self.units.items()), CLASSES)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        vectors = []
        for m, rows in features.items():
            weights = torch.softmax(self.scores[m](rows.transpose(1, 2)), dim=2)
            units = torch.bmm(weights, rows) * self.alpha[m] + self.beta[m]
            vectors.append((nn.functional.normalize(units, dim=2) / self.units[m] ** 0.5).flatten(1))
        logits: Tensor = self.fc(self.dropout(torch.cat(vectors, dim=1)))
        return logits


class PlainVtn(nn.Module):
    """Four post-norm blocks of torch's own encoder layer on the modalities side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(sum(DIMS.values()), 512)
        self.places = nn.Parameter(torch.zeros(16, 512))
        layer = nn.TransformerEncoderLayer(512, 8, 1024, dropout=0.1, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 4)
        self.fc = nn.Linear(512, CLASSES)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        tokens = self.blocks(self.embed(torch.cat(list(features.values()), dim=2)) + self.places)
        logits: Tensor = self.fc(tokens).mean(dim=1)
        return logits


class PlainBiLstm(nn.Module):
    """Batch norm, torch's LSTM in both directions, mean over time, dropout, linear."""

    def __init__(self) -> None:
        super().__init__()
        hidden = {"rgb": 1024, "flow": 512, "audio": 512}
        self.norms = nn.ModuleDict({m: nn.BatchNorm1d(d) for m, d in DIMS.items()})
        self.lstms = nn.ModuleDict(
            {m: nn.LSTM(d, hidden[m], batch_first=True, bidirectional=True) for m, d in DIMS.items()}
        )
        self.dropout = nn.Dropout(0.9)
        self.fc = nn.Linear(2 * sum(hidden.values()), CLASSES)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        means = []
        for m, rows in features.items():
            rows = self.norms[m](rows.transpose(1, 2)).transpose(1, 2)
            means.append(self.lstms[m](rows)[0].mean(dim=1))
        logits: Tensor = self.fc(self.dropout(torch.cat(means, dim=1)))
        return logits


if __name__ == "__main__":
    main()
