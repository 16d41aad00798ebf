"""Features that others made, and ours for others: an array a video as .npy files, in HDF5, or in WebDataset's tars.

    npy          <video>.npy or <video>_<key>.npy, as video_features writes them; <video>_timestamps_ms.npy beside them
    hdf5         a dataset a video, <video> or <video>/<key>; or flat: features, offsets, ids in the file or in <key>/
    webdataset   one tar or a folder of them: members <video>.npy or <video>.<key>.npy

Files are strangers': what they claim is held against their size before anything is allocated, links are not followed,
and nothing in them is run. A video of the list is matched by its whole id, else by the last part of it where that names
one video only.

    rows = opened(Path("i3d"), "npy", "rgb", None, ids)
    for time_us, block in rows.blocks("Archery/v_Archery_g01_c01"): ...         # (n,), (n,*D)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from features.errors import UserError
from features.foreign.base import Collection, Unreadable, layout_of


def opened(
    path: Path,
    layout: str | None,
    key: str | None,
    every_s: float | None,
    ids: Sequence[str],
    cache: Path | None = None,
) -> Collection:
    """The rows of the videos `ids` at `path`; `every_s` between rows where they bring no times. What is in tars is kept
    in the folder `cache`, for the next who asks. Raises `UserError`."""
    if not path.exists():
        raise UserError("features are not there", where=path, fix="set path to the folder or file that has them")
    layout = layout or layout_of(path)
    if layout == "npy":
        from features.foreign.npy import Npy

        return Npy(path, key, every_s, ids)
    if layout == "webdataset":
        from features.foreign.webdataset import Tars

        return Tars(path, key, every_s, ids, cache)
    from features.foreign.hdf5 import Hdf5

    return Hdf5(path, key, every_s, ids)


__all__ = ["Collection", "Unreadable", "layout_of", "opened"]
