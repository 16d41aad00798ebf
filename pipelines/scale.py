"""What a large archive takes: shards, jobs, files, bytes and hours, from rates that were measured.

    python -m pipelines.scale --videos 1000000 --seconds 10 --network-rows-s 195 --decoded-frames-s 1170

Rates are those of one core, as `benchmarks.extraction` prints them (rows/s of the network divided by its cores; decoded
samples of a clip times its frames a sample); a core then spends 1 / network + frames / decoding on a row. Nothing here
is assumed but the layout of a store (`features.store`) and Snakemake's overhead (measured, see docs/scale.md).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from features.manifest import MAX_BYTES

# Of a shard: the manifest twice, zarr.json of the group and its three arrays, offsets, time_us; rows come on top.
FILES_A_SHARD = 8
ROW_FILE_BYTES = 256 << 20  # `features.store.FILE_BYTES`, which is not imported here: zarr takes a second
MANIFEST_BYTES_A_VIDEO = 151  # id, outcome and counts, measured on ucf6; the manifest is there twice
STATE_BYTES_A_VIDEO = 16
PARTS_S = 60  # `pipelines.scoring.output.PART_S`
PARTS_VIDEOS = 4096  # its PART_VIDEOS
DAG_S_A_JOB, DAG_BYTES_A_JOB = 0.3e-3, 13_000


@dataclass(frozen=True, kw_only=True)
class Archive:
    """`videos` of `seconds`, and what is kept of each: `rows` of `dims` float16, of which `kept` is left by zstd."""

    videos: int
    seconds: float = 10.0
    fps: float = 25.0
    rows: int = 25
    dims: int = 1280
    kept: float = 0.82  # features of MobileNetV2 on ucf6, measured
    classes: int = 400
    shard: int = 256
    extractors: int = 1

    @property
    def shards(self) -> int:
        return math.ceil(self.videos / self.shard)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Of one core: rows a second through the network, frames a second out of the decoder; and of one GPU, where it is
    known."""

    network_rows_s: float
    decoded_frames_s: float
    gpu_rows_s: float | None = None
    start_s: float = 8.0  # of a job: the interpreter, the network, decoder processes


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What it takes."""

    shards: int
    jobs: int
    files: int
    feature_bytes: int
    manifest_bytes: int
    network_core_hours: float
    decoding_core_hours: float
    start_core_hours: float
    gpu_hours: float | None
    cores_a_gpu: float | None  # that decode for one GPU so that it never waits
    plan_s: float
    plan_bytes: int
    score_bytes: int
    score_parts: int

    @property
    def core_hours(self) -> float:
        """Without a GPU."""
        return self.network_core_hours + self.decoding_core_hours + self.start_core_hours


def bill(archive: Archive, rates: Rates, cores: int = 16) -> Bill:
    """What extracting (or scoring) the archive takes; `cores` are those that scoring runs on."""
    jobs = archive.shards * archive.extractors + archive.extractors + 1  # gather, index
    shard_bytes = archive.shard * archive.rows * archive.dims * 2
    row_files = math.ceil(shard_bytes / ROW_FILE_BYTES)
    rows = archive.videos * archive.rows * archive.extractors
    frames = archive.videos * archive.seconds * archive.fps
    network_s, decoding_s = rows / rates.network_rows_s, frames / rates.decoded_frames_s
    gpu_s = None if rates.gpu_rows_s is None else rows / rates.gpu_rows_s
    return Bill(
        shards=archive.shards,
        jobs=jobs,
        files=archive.shards * archive.extractors * (FILES_A_SHARD + row_files),
        feature_bytes=round(rows * (archive.dims * 2 * archive.kept + 8)),
        manifest_bytes=2 * archive.videos * archive.extractors * MANIFEST_BYTES_A_VIDEO,
        network_core_hours=network_s / 3600,
        decoding_core_hours=decoding_s / 3600,
        start_core_hours=jobs * rates.start_s / 3600,
        gpu_hours=None if gpu_s is None else gpu_s / 3600,
        cores_a_gpu=None if gpu_s is None else decoding_s / gpu_s,
        plan_s=jobs * DAG_S_A_JOB,
        plan_bytes=jobs * DAG_BYTES_A_JOB,
        score_bytes=archive.videos * (4 * archive.classes + STATE_BYTES_A_VIDEO),
        score_parts=math.ceil(max((network_s + decoding_s) / cores / PARTS_S, archive.videos / PARTS_VIDEOS)),
    )


def breaks_first(archive: Archive, found: Bill) -> list[str]:
    """The limits that an archive comes nearest to, the nearest first."""
    listed = {
        "a manifest over its limit": MANIFEST_BYTES_A_VIDEO * archive.shard / MAX_BYTES,
        "minutes of planning (the DAG of a workflow)": found.plan_s / 60,
        "a million files in one file system": found.files / 1e6,
        "16 GB for the plan": found.plan_bytes / 16e9,
    }
    return [f"{what}: {share:.1%} of it" for what, share in sorted(listed.items(), key=lambda item: -item[1])]


def positive(text: str) -> float:
    """A number above 0, of the command line."""
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    archive, rates = Archive(videos=1), Rates(network_rows_s=1, decoded_frames_s=1)
    parser.add_argument("--videos", type=int, required=True)
    for name in ("seconds", "fps", "rows", "dims", "kept", "classes", "shard", "extractors"):
        kind = type(getattr(archive, name))
        parser.add_argument(f"--{name}", type=kind, default=getattr(archive, name), help="default: %(default)s")
    parser.add_argument("--network-rows-s", type=positive, required=True, help="of one core")
    parser.add_argument("--decoded-frames-s", type=positive, required=True, help="of one core")
    parser.add_argument("--gpu-rows-s", type=positive, help="of one GPU, with decoding elsewhere")
    parser.add_argument("--start-s", type=float, default=rates.start_s, help="of a job (default: %(default)s)")
    parser.add_argument("--cores", type=positive, default=16, help="that scoring runs on (default: %(default)s)")
    args = vars(parser.parse_args())
    cores = args.pop("cores")
    given = {name: args.pop(name) for name in ("network_rows_s", "decoded_frames_s", "gpu_rows_s", "start_s")}
    found = bill(asked := Archive(**args), Rates(**given), cores)
    print(f"{asked.videos:,} videos of {asked.seconds:g} s, {asked.rows} rows of {asked.dims} float16 each")
    print(f"  extraction  {found.shards:,} shards, {found.jobs:,} jobs, {found.files:,} files")
    features, manifests = found.feature_bytes / 1e9, found.manifest_bytes / 1e9
    print(f"              {features:,.1f} GB of features, {manifests:,.2f} GB of manifests")
    print(f"  planning    {found.plan_s:,.1f} s, {found.plan_bytes / 1e6:,.0f} MB")
    parts = f"network {found.network_core_hours:,.0f}, decoding {found.decoding_core_hours:,.0f}"
    print(f"  one core    {found.core_hours:,.0f} h ({parts}, starting jobs {found.start_core_hours:,.1f})")
    if found.gpu_hours is not None:
        print(f"  one GPU     {found.gpu_hours:,.1f} h, fed by {found.cores_a_gpu:,.1f} cores that decode")
    print(
        f"  scoring     {found.score_bytes / 1e9:,.2f} GB with all logits, {found.score_parts:,} parts on {cores} cores"
    )
    print("  nearest limits: " + "; ".join(breaks_first(asked, found)))


if __name__ == "__main__":
    main()
