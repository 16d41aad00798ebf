"""A tiny dataset with trained runs, and archives to score."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet

from pipelines import __main__ as program
from pipelines import plan as plans
from tests.workflow import world

CONFIG = {
    **world.CONFIG,
    "heads": {
        **world.CONFIG["heads"],
        "late": {"kind": "fusion", "heads": {"average": 2, "ridge": 1}, "of": "softmax"},
    },
}


def build(folder: Path) -> Path:
    """Both stages, by the commands; to be called in `folder`."""
    world.build(folder, 9)
    world.write_config(folder, CONFIG)
    heads = "--head average --head ridge --head late"
    for line in ("index tiny", "extract tiny --extractor rgb --threads 1", f"train tiny {heads} --threads 1"):
        plans.of.cache_clear()
        if program.main(line.split()) != 0:
            raise AssertionError(line)
    plans.of.cache_clear()
    return folder


def run_of(head: str) -> Path:
    """Where the run of a head is, from the dataset's folder."""
    (found,) = Path("work/tiny/runs").glob(f"{head}-*/seed0")
    return found


def tar_of(path: Path, files: Iterable[tuple[str, Path]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, file in files:
            tar.add(file, name)
    return path


def add_member(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    """A member with whatever header."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def rows_of(out: Path) -> list[dict[str, Any]]:
    """What was written, in its order."""
    if out.suffix == ".parquet":
        found: list[dict[str, Any]] = pyarrow.parquet.read_table(out).to_pylist()
        return found
    return [json.loads(line) for line in out.read_text().splitlines()]
