"""Pictures of digits to make videos of: MNIST from a file, from torchvision's download, or scikit-learn's small ones.

images = load("scikit-learn")["train"][3]                   # (n, 28, 28) uint8: the training pictures of a 3
"""

from __future__ import annotations

import gzip
import os
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from features.atomic import make_folder
from features.errors import UserError
from features.recipe import file_sha256

Uint8 = npt.NDArray[np.uint8]
Where = Literal["scikit-learn", "DEFAULT"] | Path
SIDE_PX: Final = 28
_DRAWN_PX: Final = 20
SIDES: Final = ("train", "test")
DOWNLOADS: Final = Path("work/downloads")
_IDX: Final = {"train": "train", "test": "t10k"}
_FIX: Final = "give `digits` an .npz with x_train, y_train, x_test, y_test, a folder of MNIST's four files, or DEFAULT"


def load(where: Where) -> dict[str, list[Uint8]]:
    """Of each side of the split, of each digit, the pictures (n, 28, 28) in their order. Raises `UserError`."""
    return {side: [images[labels == d] for d in range(10)] for side, (images, labels) in _read(where).items()}


def labels(where: Where) -> dict[str, npt.NDArray[np.int64]]:
    """Of each side the digits (n,) in the order of the pictures."""
    return {side: found for side, (_, found) in _read(where).items()}


def identity(where: Where) -> str:
    """What tells these pictures from others, for a recipe."""
    if not isinstance(where, Path):
        return where
    if where.is_dir():
        return "+".join(file_sha256(path)[:16] for side in SIDES for path in _idx_files(where, side))
    _there(where)
    return file_sha256(where)


@lru_cache(2)
def _read(where: Where) -> dict[str, tuple[Uint8, npt.NDArray[np.int64]]]:
    if where == "scikit-learn":
        return _scikit_learn()
    if where == "DEFAULT":
        return _idx_folder(_download())
    if where.is_dir():
        return _idx_folder(where)
    _there(where)
    try:
        with np.load(where) as kept:
            found = {side: (kept[f"x_{side}"], kept[f"y_{side}"]) for side in SIDES}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError("not a file of digits", where=where, got=error, fix=_FIX) from None
    return {side: _checked(where, *pair) for side, pair in found.items()}


def _there(path: Path) -> None:
    if not path.is_file():
        raise UserError("digits are not there", where=path, expected="a file or folder", got="nothing", fix=_FIX)


def _scikit_learn() -> dict[str, tuple[Uint8, npt.NDArray[np.int64]]]:
    """Every fourth of the 1,797 pictures is for testing. They are 8 x 8, drawn 20 x 20 in the middle as MNIST's are."""
    from sklearn.datasets import load_digits  # takes a second: not while a Snakefile parses

    bunch = load_digits()
    at = np.clip((np.arange(_DRAWN_PX) + 0.5) * 8 / _DRAWN_PX - 0.5, 0, 7)
    weights = np.zeros((SIDE_PX, 8))
    margin = (SIDE_PX - _DRAWN_PX) // 2
    weights[margin:-margin] = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(8)))  # (20, 8): linear
    images = np.rint(weights @ (bunch.images / 16 * 255) @ weights.T).astype(np.uint8)
    test = np.arange(len(images)) % 4 == 0
    return {side: (images[mask], bunch.target[mask]) for side, mask in zip(SIDES, (~test, test), strict=True)}


def _download() -> Path:
    folder = DOWNLOADS / "MNIST" / "raw"
    if all((folder / name).is_file() for side in SIDES for name in _idx_names(side)):
        return folder
    from torchvision.datasets import MNIST  # takes seconds: not while a Snakefile parses

    try:
        MNIST(str(make_folder(DOWNLOADS)), download=True)
    except Exception as error:
        raise UserError("MNIST cannot be downloaded", where=folder, got=error, fix=_FIX) from None
    return folder


def _idx_folder(folder: Path) -> dict[str, tuple[Uint8, npt.NDArray[np.int64]]]:
    found = {}
    for side in SIDES:
        images, numbers = (_idx(path) for path in _idx_files(folder, side))
        found[side] = _checked(folder, images, numbers)
    return found


def _idx_names(side: str) -> tuple[str, str]:
    return f"{_IDX[side]}-images-idx3-ubyte", f"{_IDX[side]}-labels-idx1-ubyte"


def _idx_files(folder: Path, side: str) -> tuple[Path, Path]:
    paths = [next((p for p in (folder / n, folder / f"{n}.gz") if p.is_file()), folder / n) for n in _idx_names(side)]
    for path in paths:
        _there(path)
    return paths[0], paths[1]


def _idx(path: Path) -> npt.NDArray[Any]:
    """An array of bytes as MNIST's own format has it: two zeros, 8, the number of axes, each axis, the values."""
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError("not a file of digits", where=path, got=error, fix=_FIX) from None
    axes = data[3] if len(data) > 4 and data[:3] == b"\0\0\x08" else 0
    shape = tuple(np.frombuffer(data, ">u4", axes, 4).tolist()) if len(data) >= 4 + 4 * axes else ()
    if not axes or len(data) != 4 + 4 * axes + int(np.prod(shape)):
        raise UserError("not a file of digits", where=path, expected="MNIST's idx format", fix=_FIX)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _checked(
    where: os.PathLike[str], images: npt.NDArray[Any], numbers: npt.NDArray[Any]
) -> tuple[Uint8, npt.NDArray[np.int64]]:
    shape = (len(numbers), SIDE_PX, SIDE_PX)
    if images.shape != shape or images.dtype != np.uint8 or set(np.unique(numbers)) != set(range(10)):
        expected = "uint8 pictures (n, 28, 28) of all ten digits"
        raise UserError(
            "not pictures of digits", where=where, expected=expected, got=f"{images.dtype} {images.shape}", fix=_FIX
        )
    return images, numbers.astype(np.int64)
