"""A shard's manifest: what the shard holds, made from what, and the digest of every byte of it.

The manifest is small JSON without times or machine names, so that the same work gives the same bytes. It stands twice:
inside the shard (part of what is renamed into place) and beside it as the published, tracked file.

    manifest = read_manifest(folder, 42)
    manifest.outcomes[0].outcome                      # "ok"
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.errors import DamagedStore, FramepoolError
from features.outcome import Outcome
from features.recipe import digest

FORMAT = 1
MAX_BYTES = 256 << 20  # nobody's shard needs more; a hostile gigabyte of JSON stops here
REPAIR = "run `framepool verify DATASET --repair`"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """V videos, N rows of shape `row_shape`; `files` maps each file of the shard to (bytes, sha256)."""

    extractor: str
    digest: str  # of the recipe
    recipe: dict[str, Any]
    facts: dict[
        str, Any
    ]  # what the recipe led to: sha256 of the weights, the transform; equal in all shards of a store
    shard: int
    list_digest: str  # of the shard's slice of the video list: ids, paths and fingerprints of the files
    ids: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    row_shape: tuple[int, ...]
    dtype: str
    statistics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)  # sha256 of the videos' files of which not all was had

    @property
    def rows(self) -> int:
        """N, the rows of all the videos."""
        return sum(o.rows for o in self.outcomes)

    @property
    def bytes(self) -> int:
        """What the shard takes on disk."""
        return sum(size for size, _ in self.files.values())

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """(V + 1,): rows of video v are ``frames[offsets[v]:offsets[v + 1]]``."""
        return np.concatenate([[0], np.cumsum([o.rows for o in self.outcomes], dtype=np.int64)]).astype(np.int64)

    def identity(self) -> tuple[Any, ...]:
        """What must be equal for two manifests to stand for the same work."""
        return self.digest, self.list_digest, self.shard, self.ids

    def to_json(self) -> dict[str, Any]:
        videos = [{"id": i, **o.to_json()} for i, o in zip(self.ids, self.outcomes, strict=True)]
        left_out = ("ids", "outcomes", *(() if self.unread else ("unread",)))
        fields = {k: v for k, v in self.__dict__.items() if k not in left_out}
        return {"format": FORMAT, **fields, "rows": self.rows, "videos": videos}

    @classmethod
    def from_json(cls, value: Any, where: Path) -> Manifest:
        """Raises `DamagedStore` where `value` is no manifest of ours."""
        try:
            if value["format"] != FORMAT:
                raise DamagedStore("unknown manifest format", where=where, expected=FORMAT, got=value["format"])
            outcomes = tuple(Outcome(**{k: v for k, v in video.items() if k != "id"}) for video in value["videos"])
            manifest = cls(
                ids=tuple(str(video["id"]) for video in value["videos"]),
                outcomes=outcomes,
                row_shape=tuple(int(n) for n in value["row_shape"]),
                files={str(k): (int(size), str(sha)) for k, (size, sha) in value["files"].items()},
                **{k: value[k] for k in ("extractor", "digest", "recipe", "facts", "list_digest", "dtype")},
                shard=int(value["shard"]),
                statistics=value["statistics"],
                unread={str(k): str(v) for k, v in value.get("unread", {}).items()},
            )
            rows, dtype = manifest.offsets, np.dtype(manifest.dtype)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedStore("damaged manifest", where=where, got=repr(error), fix=REPAIR) from None
        if rows[-1] != value["rows"] or (np.diff(rows) < 0).any():
            raise DamagedStore("row counts disagree", where=where, expected=value["rows"], got=rows[-1], fix=REPAIR)
        if dtype.kind not in "fu":
            raise DamagedStore(
                "unknown dtype", where=where, expected="float16, float32 or uint8", got=dtype, fix=REPAIR
            )
        if any(Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name for name in manifest.files):
            raise DamagedStore("manifest names a file outside its shard", where=where, fix=REPAIR)
        return manifest


def manifest_path(folder: Path, shard: int) -> Path:
    """The published manifest of a shard; the file that the workflow tracks."""
    return folder / f"{shard:05d}.json"


def read_manifest(folder: Path, shard: int) -> Manifest:
    """The published manifest. Raises `FramepoolError` where it is not there, `DamagedStore` where broken."""
    return parse_manifest(manifest_path(folder, shard))


def parse_manifest(path: Path) -> Manifest:
    """The manifest in one file."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DamagedStore("manifest is too large", where=path, expected=f"<= {MAX_BYTES} bytes", got=size)
        return Manifest.from_json(json.loads(path.read_bytes()), path)
    except OSError as error:
        got = "" if isinstance(error, FileNotFoundError) else error.strerror
        raise FramepoolError("shard is not there", where=path, got=got, fix="run `framepool extract` for it") from None
    except (ValueError, RecursionError) as error:
        raise DamagedStore("damaged manifest", where=path, got=error, fix=REPAIR) from None


def contents(found: Iterable[Manifest]) -> str:
    """What tells the rows of a store's shards from others of their recipe: a digest of their files' digests."""
    return digest([manifest.files for manifest in found])


def shards(folder: Path) -> list[int]:
    """The published shards of a store, ascending."""
    return sorted(int(p.stem) for p in folder.glob("*.json") if p.stem.isdigit() and len(p.stem) == 5)
