"""Videos that are not where the list says.

check_videos(plan, [store])
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from features.errors import FramepoolError, UserError
from features.manifest import read_manifest, shards
from pipelines.config import config_path

if TYPE_CHECKING:
    from pipelines.plan import Plan, Store


def check_videos(plan: Plan, stores: Iterable[Store]) -> None:
    """Raises `UserError` where one of `stores` reads videos, and all of the list are missing, or of more than
    `max_bad_share` of it the files are and features are not: a disk that is not mounted must not pass for broken files,
    whose features would be taken away."""
    readers = [store for store in stores if store.reads_video]
    videos = plan.videos.videos
    gone = {video.id for video in videos if not video.path}
    most = plan.config.max_bad_share * len(videos)
    if plan.rendered or plan.config.generated or not readers or len(gone) <= min(most, len(videos) - 1):
        return
    kept = max(len(gone & _with_rows(store.folder)) for store in readers)
    if len(gone) < len(videos) and kept <= most:
        return
    there = f"{len(videos) - len(gone)} of {len(videos)}" if len(gone) < len(videos) else f"none of {len(videos)}"
    where, got = f"{config_path(plan.dataset)}: $.videos.root", f"{there} in {plan.root}"
    fix = "put them there, or say where they are"
    if kept:
        got += f", and features of {kept} of the others" if len(gone) < len(videos) else ""
        fix += "; features that are there stay, and `framepool train` and `assemble` go on with them"
    raise UserError("the videos are not there", where=where, got=got, fix=fix)


def _with_rows(folder: Path) -> set[str]:
    """The videos that a store has rows of."""
    found: set[str] = set()
    for shard in shards(folder):
        with suppress(FramepoolError):  # what is damaged has none
            manifest = read_manifest(folder, shard)
            found.update(id for id, o in zip(manifest.ids, manifest.outcomes, strict=True) if o.rows)
    return found
